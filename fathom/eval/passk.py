"""Scores of sampled answers, each with how far it can be trusted."""

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

Z_95 = 1.959963984540054  # 97.5 % quantile of the normal law: two-sided 95 %


class Interval(NamedTuple):
    """Bounds of a confidence interval, as shares."""

    low: float
    high: float


class Estimate(NamedTuple):
    """A mean and its standard error."""

    mean: float
    standard_error: float

    @property
    def interval(self) -> Interval:
        """The 95 % interval of the normal approximation, cut at 0 and 1."""
        return Interval(
            max(0.0, self.mean - Z_95 * self.standard_error), min(1.0, self.mean + Z_95 * self.standard_error)
        )


def wilson(successes: int, trials: int, z: float = Z_95) -> Interval:
    """Wilson's score interval of a share: honest near 0 and 1, where the normal one is not.

    It takes the trials for independent: one answer per problem. For several use `clustered_mean`.
    """
    if not 0 <= successes <= trials or trials == 0:
        raise ValueError(
            f"{successes} successes in {trials} trials is no share; give 0 <= successes <= trials, trials > 0"
        )
    share = successes / trials
    scale = 1 + z * z / trials
    centre = (share + z * z / (2 * trials)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    return Interval(max(0.0, centre - half), min(1.0, centre + half))


def clustered_mean(scores: Sequence[Sequence[float | int]]) -> Estimate:
    """Mean over all answers, with a standard error that knows which answers share a problem.

    `scores` holds one sequence per problem. Deviations are summed within a problem before they are squared,
    in closed form: sqrt(Q / (Q - 1) * sum over problems of (sum of deviations)^2) / answers. Two identical
    answers to each problem therefore prove no more than one. NaN for a single problem.
    """
    answers = sum(len(problem) for problem in scores)
    if answers == 0:
        raise ValueError("there is no answer to average; give at least one score")
    mean = math.fsum(score for problem in scores for score in problem) / answers
    problems = sum(1 for problem in scores if problem)
    if problems == 1:
        return Estimate(mean, math.nan)
    squares = math.fsum(math.fsum(score - mean for score in problem) ** 2 for problem in scores)
    return Estimate(mean, math.sqrt(problems / (problems - 1) * squares) / answers)


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """Chance that k of the drawn samples, taken without replacement, hold a correct one: 1 - C(n-c, k) / C(n, k).

    Unbiased for the chance that k fresh samples hold one; 1 - (1 - c/n)^k is not. Raises ValueError unless
    0 <= correct <= samples and 1 <= k <= samples.
    """
    if not 0 <= correct <= samples:
        raise ValueError(f"{correct} correct of {samples} samples is impossible; give 0 <= correct <= samples")
    if not 1 <= k <= samples:
        raise ValueError(f"pass@{k} cannot be had from {samples} samples; draw at least {k}, and k at least 1")
    return 1.0 - math.comb(samples - correct, k) / math.comb(samples, k)


def majority_at_k(answers: Sequence[str | None], correct: Sequence[float | int], k: int) -> float:
    """How often the commonest of k answers to a problem is right: cons@k, or maj@k.

    Equal answers are equal strings; None votes for nothing, and k Nones are wrong. Of several that are commonest one
    wins by lot. The vote is held in every whole group of k successive answers, which estimates without bias. Raises
    ValueError unless 1 <= k <= answers.
    """
    if not 1 <= k <= len(answers):
        raise ValueError(f"maj@{k} cannot be had from {len(answers)} samples; draw at least {k}, and k at least 1")
    starts = range(0, len(answers) - k + 1, k)
    return math.fsum(_vote(answers[at : at + k], correct[at : at + k]) for at in starts) / len(starts)


def _vote(answers: Sequence[str | None], correct: Sequence[float | int]) -> float:
    """The chance that the winner of a vote is right."""
    scores: dict[str, list[float | int]] = defaultdict(list)
    for answer, score in zip(answers, correct, strict=True):
        if answer is not None:
            scores[answer].append(score)
    most = max(map(len, scores.values()), default=0)
    leaders = [math.fsum(found) / most for found in scores.values() if len(found) == most]
    return math.fsum(leaders) / len(leaders) if leaders else 0.0


def mean_interval(values: Sequence[float]) -> tuple[float, Interval]:
    """Mean of one value per problem in [0, 1] and its 95 % interval: Wilson's where all are 0 or 1."""
    mean = math.fsum(values) / len(values)
    if all(value in (0.0, 1.0) for value in values):
        return mean, wilson(round(math.fsum(values)), len(values))
    return mean, clustered_mean([[value] for value in values]).interval
