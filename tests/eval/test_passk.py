import math
from itertools import combinations

import pytest

from fathom.eval.passk import clustered_mean, pass_at_k, wilson


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        (8, 10, 0.4901625, 0.9433178),
        (0, 10, 0.0, 0.2775328),  # z^2 / (n + z^2)
        (10, 10, 0.7224672, 1.0),
        (800, 1000, 0.7740810, 0.8236229),
    ],
)
def test_wilson_interval(successes: int, trials: int, low: float, high: float) -> None:
    assert wilson(successes, trials) == pytest.approx((low, high), abs=1e-6)


def test_wilson_bounds_solve_the_score_equation() -> None:
    """By definition |p - bound| = z sqrt(bound (1 - bound) / n)."""
    for bound in wilson(37, 50):
        assert abs(37 / 50 - bound) == pytest.approx(1.959964 * math.sqrt(bound * (1 - bound) / 50), rel=1e-6)


@pytest.mark.parametrize(("successes", "trials"), [(1, 0), (0, 0), (-1, 5), (6, 5)])
def test_wilson_refuses_what_is_no_share(successes: int, trials: int) -> None:
    with pytest.raises(ValueError, match="is no share"):
        wilson(successes, trials)


def test_clustered_error_by_hand() -> None:
    # means 1, 0.5, 0, 0.5 around 0.5: deviations per problem 1, 0, -1, 0; sqrt(4/3 * 2) / 8
    estimate = clustered_mean([[1, 1], [1, 0], [0, 0], [0, 1]])
    assert estimate.mean == 0.5
    assert estimate.standard_error == pytest.approx(math.sqrt(8 / 3) / 8)
    assert estimate.interval == pytest.approx((0.5 - 0.4000761, 0.5 + 0.4000761), abs=1e-6)


def test_clustered_error_of_single_answers_is_the_plain_one() -> None:
    estimate = clustered_mean([[1], [0], [1], [1], [0]])
    assert estimate.standard_error == pytest.approx(math.sqrt(0.3 / 5))  # sample variance 0.3


def test_repeated_answers_prove_no_more_than_one() -> None:
    once = clustered_mean([[1], [0], [1], [1]])
    tenfold = clustered_mean([[score] * 10 for score in (1, 0, 1, 1)])
    assert tenfold.mean == once.mean
    assert tenfold.standard_error == pytest.approx(once.standard_error)


def test_clusters_of_unequal_size_weigh_by_their_answers() -> None:
    # mean 0.75; deviations 3 * 0.25 and -0.75; sqrt(2 * 2 * 0.5625) / 4
    estimate = clustered_mean([[1, 1, 1], [0]])
    assert estimate == pytest.approx((0.75, 0.375))


def test_one_problem_has_no_error_and_none_has_no_mean() -> None:
    assert math.isnan(clustered_mean([[1, 0]]).standard_error)
    with pytest.raises(ValueError, match="no answer"):
        clustered_mean([])


def test_interval_stays_within_shares() -> None:
    assert clustered_mean([[1], [1], [1], [0]]).interval.high == 1.0


@pytest.mark.parametrize(
    ("samples", "correct", "k", "value"),
    [(10, 3, 1, 0.3), (10, 3, 5, 1 - 21 / 252), (4, 2, 2, 1 - 1 / 6), (5, 0, 3, 0.0), (5, 3, 3, 1.0), (5, 5, 1, 1.0)],
)
def test_pass_at_k_by_hand(samples: int, correct: int, k: int, value: float) -> None:
    assert pass_at_k(samples, correct, k) == pytest.approx(value)


def test_pass_at_k_equals_enumeration_and_survives_large_counts() -> None:
    draws = list(combinations([1, 1, 0, 0, 0, 0, 0], 3))
    assert pass_at_k(7, 2, 3) == pytest.approx(sum(map(any, draws)) / len(draws))
    assert pass_at_k(10_000, 1, 5_000) == pytest.approx(0.5)


@pytest.mark.parametrize(("samples", "correct", "k"), [(5, 6, 1), (5, -1, 1), (5, 2, 6), (5, 2, 0)])
def test_pass_at_k_refuses_impossible_counts(samples: int, correct: int, k: int) -> None:
    with pytest.raises(ValueError, match=r"give|draw"):
        pass_at_k(samples, correct, k)
