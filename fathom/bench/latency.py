"""What a load's answers come to: percentiles, rates, goodput, and whether the one who asked was the slow one."""

from collections import Counter
from collections.abc import Sequence
from math import ceil
from typing import Any

from fathom.bench.load import Answered, Share
from fathom.bench.load_options import LoadOptions

BUSY = 0.8  # of a core: an asking process that takes more delays what it measures
LATE_MS = 50.0  # behind its time at which the slowest hundredth of requests may start


def percentile(values: Sequence[float], share: float) -> float:
    """The least value that `share` of all do not exceed (nearest rank)."""
    return sorted(values)[max(0, ceil(share * len(values)) - 1)]


def spread_ms(seconds: Sequence[float]) -> dict[str, float] | None:
    """Mean, median, 90th and 99th percentile in milliseconds; None of nothing."""
    if not seconds:
        return None
    found = {"mean": sum(seconds) / len(seconds)}
    found |= {f"p{round(100 * share)}": percentile(seconds, share) for share in (0.5, 0.9, 0.99)}
    return {name: round(1e3 * value, 3) for name, value in found.items()}


def is_good(answer: Answered, options: LoadOptions) -> bool:
    """Whether an answer came, and within every time that was asked."""
    bounds = [
        (options.ttft_ms, None if answer.first is None else answer.first - answer.due),
        (options.token_ms, answer.token_s or 0.0),  # of a single token there is no next to wait for
        (options.e2e_ms, answer.ended - answer.due),
    ]
    return not answer.error and all(not most or (took is not None and 1e3 * took <= most) for most, took in bounds)


def summarize(shares: Sequence[Share], options: LoadOptions) -> dict[str, Any]:
    """All figures of a load. Times run from when a request was due, so that a late start is not forgiven."""
    answers = [answer for share in shares for answer in share.answers]
    whole = [answer for answer in answers if not answer.error]
    seconds = max(answer.ended for answer in answers) - min(answer.due for answer in answers)
    token_s = [answer.token_s for answer in whole if answer.token_s is not None]
    good = sum(is_good(answer, options) for answer in answers)
    asked = {name: getattr(options, name) for name in ("ttft_ms", "token_ms", "e2e_ms") if getattr(options, name)}
    tokens, prompts = sum(answer.tokens for answer in whole), sum(answer.prompt_tokens for answer in whole)
    return {
        "requests": len(answers),
        "answered": len(whole),
        "errors": dict(Counter(answer.error for answer in answers if answer.error)),
        "seconds": round(seconds, 3),
        "requests_per_s": round(len(whole) / seconds, 3),
        "tokens_per_s": round(tokens / seconds, 2),
        "prompt_tokens_per_s": round(prompts / seconds, 2),
        "mean_prompt_tokens": round(prompts / len(whole), 1) if whole else None,
        "mean_tokens": round(tokens / len(whole), 1) if whole else None,
        "mean_inside": round(sum(answer.ended - answer.began for answer in answers) / seconds, 2),
        "ttft_ms": spread_ms([answer.first - answer.due for answer in whole if answer.first is not None]),
        "token_ms": spread_ms(token_s),
        "event_gap_ms": spread_ms([gap for answer in whole for gap in answer.gaps]),
        "e2e_ms": spread_ms([answer.ended - answer.due for answer in whole]),
        "goodput": {"within": asked, "share": round(good / len(answers), 4), "per_s": round(good / seconds, 3)}
        if asked
        else None,
        "client": _client(shares, answers),
    }


def _client(shares: Sequence[Share], answers: Sequence[Answered]) -> dict[str, Any]:
    """How busy those who asked were: the bottleneck may be here."""
    cpu = [share.cpu_s / share.wall_s for share in shares]
    late = spread_ms([answer.began - answer.due for answer in answers])
    assert late is not None
    slow = max(cpu) > BUSY or late["p99"] > LATE_MS
    return {
        "processes": len(shares),
        "cpu_share": round(max(cpu), 3),  # of a core, of the busiest process
        "cpu_cores": round(sum(cpu), 3),
        "late_ms": late,
        "is_bottleneck": slow,
    }
