"""What a run reached: its evaluations, the two controls and the speculative check, read from the ledger."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Share:
    """A share of problems solved, with the bounds of its 95 % interval; all in [0, 1]."""

    value: float
    low: float
    high: float

    def is_above(self, other: "Share") -> bool:
        """Whether this lies higher and the intervals do not touch."""
        return self.low > other.high


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One evaluation on held-out problems."""

    sampled: Share  # answers drawn at temperature 1
    greedy: Share  # the likeliest answer to each problem
    problems: int
    answers: int  # sampled answers over all problems
    mean_tries: float | None  # tries an answer shows on average
    mean_length: float | None  # tokens


@dataclass(frozen=True, kw_only=True)
class RandomPlay:
    """Random legal play on the same problems, given `tries` tries each on average."""

    solved: Share
    tries: float


@dataclass(frozen=True, kw_only=True)
class SpeculativeCheck:
    """Greedy text with the MTP module drafting, held against plain greedy text."""

    equal: bool  # every answer, token for token
    answers: int
    acceptance: float  # share of drafts kept
    by_position: tuple[float, ...]  # the same for the first and further drafts of a step
    tokens_per_step: float
    plain_tokens_per_s: float
    speculative_tokens_per_s: float

    @property
    def speed_ratio(self) -> float:
        """Speculative over plain tokens per second, as measured."""
        return self.speculative_tokens_per_s / self.plain_tokens_per_s


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """All of it; None where the run has no such ledger line."""

    before: Evaluation | None
    after: Evaluation | None
    sft_control: Evaluation | None
    random_play: RandomPlay | None
    speculation: SpeculativeCheck | None


def read_outcome(ledger: Sequence[Mapping[str, Any]]) -> Outcome:
    """The last result of each kind. Raises ValueError for a line that lacks a figure."""
    scores = {line["stage"]: line["score"] for line in ledger if line.get("score")}
    evaluations: dict[str, Evaluation] = {}
    try:
        for stage in scores.keys() & {"eval_before", "eval_after", "eval_sft_control"}:
            evaluations[stage] = _evaluation(scores[stage])
        random_play = _random_play(scores["control_random"]) if "control_random" in scores else None
        speculation = _speculation(scores["mtp_check"]) if "mtp_check" in scores else None
    except KeyError as missing:
        raise ValueError(f"a score in ledger.jsonl lacks {missing}; run that evaluation again") from None
    return Outcome(
        before=evaluations.get("eval_before"),
        after=evaluations.get("eval_after"),
        sft_control=evaluations.get("eval_sft_control"),
        random_play=random_play,
        speculation=speculation,
    )


def _evaluation(score: Mapping[str, Any]) -> Evaluation:
    return Evaluation(
        sampled=Share(score["sampled"], score["sampled_low"], score["sampled_high"]),
        greedy=Share(score["greedy"], score["greedy_low"], score["greedy_high"]),
        problems=score["problems"],
        answers=score["answers"],
        mean_tries=score.get("mean_tries"),
        mean_length=score.get("mean_length"),
    )


def _random_play(score: Mapping[str, Any]) -> RandomPlay:
    return RandomPlay(solved=Share(score["solved"], score["low"], score["high"]), tries=score["tries"])


def _speculation(score: Mapping[str, Any]) -> SpeculativeCheck:
    return SpeculativeCheck(
        equal=score["equal"],
        answers=score["answers"],
        acceptance=score["acceptance"],
        by_position=tuple(score.get("acceptance_by_position", [score["acceptance"]])),
        tokens_per_step=score["tokens_per_step"],
        plain_tokens_per_s=score["plain_tokens_per_s"],
        speculative_tokens_per_s=score["speculative_tokens_per_s"],
    )
