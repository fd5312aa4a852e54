"""Votes and pass@k over questions, by hand numbers and by all the ways to draw."""

import itertools
import math

import pytest

from fathom.eval.passk import majority_at_k, mean_interval, pass_at_k, wilson
from fathom.eval.scores import Tried, require_samples, score_accuracy, score_at


@pytest.mark.parametrize(
    ("answers", "correct", "share"),
    [
        ("aab", (1, 1, 0), 1.0),
        ("abb", (1, 0, 0), 0.0),
        ("ab", (1, 0), 0.5),  # one of two leaders wins by lot
        ("abcc", (1, 0, 0, 0), 0.0),
        ("aabbc", (1, 1, 0, 0, 0), 0.5),
        ([None, None, "a"], (0, 0, 1), 1.0),  # no answer is no vote
        ([None, None], (0, 0), 0.0),
        ("aa", (1, 0), 0.5),  # one text, graded both ways
    ],
)
def test_a_vote_by_hand(answers: list[str | None], correct: tuple[int, ...], share: float) -> None:
    assert majority_at_k(answers, correct, len(answers)) == share


def test_majority_of_one_is_accuracy() -> None:
    assert majority_at_k(["a", None, "b", "a"], [1, 0, 0, 1], 1) == 0.5


@pytest.mark.parametrize("k", [1, 2, 3, 4, 5])
def test_majority_at_k_is_unbiased(k: int) -> None:
    """Over all orders of the draws its mean is the mean of the vote over all subsets of k."""
    drawn = [("a", 1), ("a", 1), ("b", 0), ("b", 0), (None, 0)]

    def vote(group: tuple[tuple[str | None, int], ...]) -> float:
        named = [answer for answer, _ in group if answer is not None]
        most = max((named.count(answer) for answer in named), default=0)
        leaders = {answer for answer in named if named.count(answer) == most}
        return ("a" in leaders) / len(leaders) if leaders else 0.0

    orders = list(itertools.permutations(drawn))
    mean = math.fsum(majority_at_k([a for a, _ in o], [c for _, c in o], k) for o in orders) / len(orders)
    subsets = list(itertools.combinations(drawn, k))
    assert mean == pytest.approx(math.fsum(map(vote, subsets)) / len(subsets))


@pytest.mark.parametrize("k", [0, 4])
def test_votes_want_enough_answers(k: int) -> None:
    with pytest.raises(ValueError, match=f"maj@{k} cannot be had from 3 samples"):
        majority_at_k(["a", "b", "c"], [1, 0, 0], k)
    with pytest.raises(ValueError, match=r"eval.k=8 exceeds the 3 answers to each question; raise --eval.samples to 8"):
        require_samples([1, 8], 3)


def test_an_interval_of_ones_is_not_certain() -> None:
    assert mean_interval([1.0] * 30) == (1.0, wilson(30, 30))
    assert wilson(30, 30).low < 0.9
    mean, interval = mean_interval([0.5, 0.25, 0.75, 0.5])
    # deviations 0, -1/4, 1/4, 0: sqrt(4 / 3 * 1/8) / 4
    assert (mean, interval.high - mean) == pytest.approx((0.5, 1.959964 * math.sqrt(4 / 3 / 8) / 4))


def test_scores_by_hand() -> None:
    tried = [
        Tried(["x", "x", "y", "y"], [True, True, False, False]),
        Tried(["x", "y", "z", None], [True, False, False, False]),
        Tried([None, None, None, None], [False] * 4),
    ]
    accuracy = score_accuracy(tried)
    assert accuracy["accuracy"] == 0.25
    assert accuracy["accuracy_low"] < 0.25 < accuracy["accuracy_high"]
    scores = score_at(tried, [4, 1, 2, 2])
    assert list(scores) == [
        f"{m}@{k}{end}" for k in (1, 2, 4) for m in ("pass", "maj") for end in ("", "_low", "_high")
    ]
    assert scores["pass@1"] == scores["maj@1"] == 0.25
    assert scores["pass@2"] == pytest.approx((pass_at_k(4, 2, 2) + pass_at_k(4, 1, 2)) / 3, abs=1e-6)
    assert scores["pass@4"] == pytest.approx(2 / 3, abs=1e-6)
    assert scores["maj@2"] == pytest.approx(((1 + 0) / 2 + (1 / 2 + 0) / 2) / 3, abs=1e-6)
    assert scores["maj@4"] == pytest.approx((1 / 2 + 1 / 3) / 3, abs=1e-6)
    assert score_at(tried, []) == {}


def test_one_answer_each_has_wilsons_interval() -> None:
    scores = score_accuracy([Tried(["x"], [True])] * 5)
    assert (scores["accuracy_low"], scores["accuracy_high"]) == pytest.approx(wilson(5, 5), abs=1e-6)
