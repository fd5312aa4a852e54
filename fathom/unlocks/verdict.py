"""When a measurement settles a claim: an interval over seeds against a stated margin."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, sqrt
from statistics import mean, stdev
from typing import Literal

Verdict = Literal["supported", "not supported", "inconclusive"]

# Student's t, two-sided 95 %, for 1, 2, 3 ... degrees of freedom
STUDENT_T = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
)


@dataclass(frozen=True)
class Interval:
    """A mean and where it lies with 95 % confidence."""

    mean: float
    low: float
    high: float

    @property
    def bar(self) -> tuple[float, float, float]:
        """Value and ends for a chart; one seed's value stands without an interval."""
        return (self.mean, self.mean, self.mean) if self.high == inf else (self.mean, self.low, self.high)

    def text(self, form: str = ".3g") -> str:
        """Such as `0.42 (0.40 to 0.44)`; a figure that cannot vary stands alone."""
        if self.low == self.high:
            return format(self.mean, form)
        if self.high == inf:
            return f"{self.mean:{form}} (one seed: no interval)"
        return f"{self.mean:{form}} ({self.low:{form}} to {self.high:{form}})"


def over_seeds(values: Sequence[float]) -> Interval:
    """Student's interval of the mean of independent seeds; one seed alone bounds nothing.

    Raises ValueError without any value.
    """
    if not values:
        raise ValueError("an interval needs at least one seed's value; none was given")
    middle = mean(values)
    if len(values) == 1:
        return Interval(middle, -inf, inf)
    t = STUDENT_T[min(len(values) - 1, len(STUDENT_T)) - 1]
    reach = t * stdev(values) / sqrt(len(values))
    return Interval(middle, middle - reach, middle + reach)


def exact(value: float) -> Interval:
    """A figure that follows from arithmetic and has no spread."""
    return Interval(value, value, value)


def above(interval: Interval, margin: float = 0.0) -> Verdict:
    """Whether the interval lies beyond `margin`: below it the claim fails, across it nothing is settled."""
    if interval.low > margin:
        return "supported"
    return "not supported" if interval.high < margin else "inconclusive"


def below(interval: Interval, margin: float) -> Verdict:
    """Whether the interval lies short of `margin`."""
    return above(Interval(-interval.mean, -interval.high, -interval.low), -margin)


def all_of(*verdicts: Verdict) -> Verdict:
    """The verdict on a claim of several parts: one part that fails fails it, an open one leaves it open."""
    if "not supported" in verdicts:
        return "not supported"
    return "inconclusive" if "inconclusive" in verdicts or not verdicts else "supported"
