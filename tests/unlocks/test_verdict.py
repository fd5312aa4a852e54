"""Intervals by hand, and verdicts on either side of a margin."""

import math

import pytest

from fathom.unlocks.verdict import Interval, above, all_of, below, exact, over_seeds


def test_students_interval() -> None:
    interval = over_seeds([1.0, 2.0, 3.0])  # spread 1, t 4.303
    assert interval.mean == 2
    assert interval.high - 2 == pytest.approx(4.303 / math.sqrt(3)) == pytest.approx(2 - interval.low)


def test_one_seed_settles_nothing() -> None:
    assert above(over_seeds([5.0])) == "inconclusive"
    with pytest.raises(ValueError, match="at least one"):
        over_seeds([])


def test_margins() -> None:
    assert [above(Interval(m, m - 1, m + 1), 3) for m in (5, 3, 1)] == ["supported", "inconclusive", "not supported"]
    assert [below(Interval(m, m - 1, m + 1), 3) for m in (5, 3, 1)] == ["not supported", "inconclusive", "supported"]
    assert above(exact(0.0)) == "inconclusive"


def test_a_claim_of_several_parts() -> None:
    assert all_of("supported", "supported") == "supported"
    assert all_of("supported", "inconclusive") == "inconclusive"
    assert all_of("inconclusive", "not supported") == "not supported"
    assert all_of() == "inconclusive"
