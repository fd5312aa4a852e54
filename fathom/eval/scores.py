"""What several answers to each of many questions say together: accuracy, pass@k, majority votes."""

from collections.abc import Sequence
from dataclasses import dataclass

from fathom.eval.passk import Interval, clustered_mean, majority_at_k, mean_interval, pass_at_k, wilson


@dataclass(frozen=True)
class Tried:
    """One question's answers, in the order drawn."""

    answers: Sequence[str | None]  # in a form in which equal ones are equal; None where a reply holds none
    correct: Sequence[bool]
    undecided: int = 0  # answers on which the check came to no verdict; they count as wrong


def require_samples(ks: Sequence[int], samples: int) -> None:
    """Raise ValueError for a k above the number of answers to each question."""
    for k in ks:
        if k > samples:
            raise ValueError(f"eval.k={k} exceeds the {samples} answers to each question; raise --eval.samples to {k}")


def score_accuracy(tried: Sequence[Tried]) -> dict[str, float]:
    """Share of right answers with its 95 % interval; several answers to one question count as dependent."""
    scores = [[float(right) for right in question.correct] for question in tried]
    estimate = clustered_mean(scores)
    if all(len(question) == 1 for question in scores):
        return _named("accuracy", estimate.mean, wilson(round(sum(map(sum, scores))), len(scores)))
    return _named("accuracy", estimate.mean, estimate.interval)


def score_at(tried: Sequence[Tried], ks: Sequence[int]) -> dict[str, float]:
    """`pass@k` and `maj@k` for each k, as shares, with their 95 % intervals over questions (`pass@k_low`, `_high`)."""
    record: dict[str, float] = {}
    for k in sorted(set(ks)):
        passed = [pass_at_k(len(question.correct), sum(question.correct), k) for question in tried]
        voted = [majority_at_k(question.answers, question.correct, k) for question in tried]
        record |= _named(f"pass@{k}", *mean_interval(passed)) | _named(f"maj@{k}", *mean_interval(voted))
    return record


def _named(name: str, mean: float, interval: Interval) -> dict[str, float]:
    values = {name: mean, f"{name}_low": interval.low, f"{name}_high": interval.high}
    return {key: round(value, 6) for key, value in values.items()}
