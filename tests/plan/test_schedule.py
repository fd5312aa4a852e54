"""Bubbles and activations of the published schedules, by formula and played out."""

from collections import Counter

import pytest

from fathom.plan.schedule import SCHEDULES, Times, bubble, check, check_micro_batches, simulate, stages_of

EQUAL = Times(F=1, B=1, W=1)  # the whole backward takes 2, an overlapped pair 3
UNEQUAL = Times(F=1.13, B=1.99, W=0.48, FB=3.1)
SHAPES = [
    *[("1f1b", ranks, count) for ranks, count in ((1, 1), (2, 2), (4, 7), (8, 8), (8, 21))],
    *[("zb1p", ranks, count) for ranks, count in ((1, 3), (2, 2), (4, 7), (8, 8), (8, 21))],
    *[("zbv", ranks, count) for ranks, count in ((1, 2), (2, 4), (4, 8), (4, 9), (8, 21))],
    *[("dualpipe", ranks, count) for ranks, count in ((2, 4), (4, 8), (4, 10), (8, 16), (8, 20), (16, 34))],
    *[("dualpipev", ranks, count) for ranks, count in ((1, 2), (2, 5), (4, 8), (4, 11), (8, 20))],
]


@pytest.mark.parametrize(
    ("schedule", "ranks", "published"),
    [
        *[("1f1b", 8, 21), ("zb1p", 8, 7), ("dualpipe", 8, 6), ("dualpipev", 4, 6)],  # 8 stages
        *[("1f1b", 16, 45), ("zb1p", 16, 15), ("dualpipe", 16, 14), ("dualpipev", 8, 14)],  # 16 stages
    ],
)
def test_the_published_bubbles_by_formula_and_played_out(schedule: str, ranks: int, published: float) -> None:
    assert stages_of(schedule, ranks) in (8, 16)
    assert bubble(schedule, ranks, EQUAL) == published
    for micro_batches in (2 * ranks, 2 * ranks + 6):
        assert simulate(schedule, ranks, micro_batches, EQUAL).bubble == (published,) * ranks


@pytest.mark.parametrize(
    ("schedule", "ranks", "activations"), [("zb1p", 8, 8), ("dualpipe", 8, 9), ("dualpipev", 4, 9)]
)
def test_the_published_activations(schedule: str, ranks: int, activations: int) -> None:
    for micro_batches in (2 * ranks, 2 * ranks + 6):
        assert simulate(schedule, ranks, micro_batches, EQUAL).peak_activations == (activations,) * ranks


def test_1f1b_holds_less_on_later_ranks() -> None:
    assert simulate("1f1b", 8, 20, EQUAL).peak_activations == (8, 7, 6, 5, 4, 3, 2, 1)


@pytest.mark.parametrize("times", [EQUAL, UNEQUAL])
@pytest.mark.parametrize(("schedule", "ranks", "micro_batches"), SHAPES)
def test_every_timeline_is_a_training_step(schedule: str, ranks: int, micro_batches: int, times: Times) -> None:
    timeline = simulate(schedule, ranks, micro_batches, times)
    check(timeline)
    per_rank = micro_batches * (2 if schedule in ("zbv", "dualpipev") else 1)
    for rank in range(ranks):
        kinds = Counter(cell.kind for cell in timeline.cells if cell.rank == rank)
        assert kinds["F"] + kinds["FB"] == per_rank
        assert kinds["B"] + kinds["BW"] + kinds["FB"] == kinds["W"] + kinds["BW"] + kinds["FB"] == per_rank


@pytest.mark.parametrize("times", [EQUAL, UNEQUAL, Times(F=1, B=1, W=0.5), Times(F=3, B=4, W=2)])
@pytest.mark.parametrize("schedule", ["1f1b", "zb1p"])
def test_the_formulas_hold_for_any_times_with_a_short_w(schedule: str, times: Times) -> None:
    assert simulate(schedule, 4, 9, times).bubble == pytest.approx([bubble(schedule, 4, times)] * 4)


def test_dualpipe_saves_what_overlap_saves() -> None:
    fast = Times(F=1, B=1, W=1, FB=2.5)
    assert bubble("dualpipe", 8, fast) == 3 * (2.5 + 2 - 3)
    assert simulate("dualpipe", 8, 20, fast).makespan < simulate("dualpipe", 8, 20, EQUAL).makespan


def test_dualpipe_never_idles_longer_than_its_formula_when_a_backward_is_longer_than_a_forward() -> None:
    for times in (Times(F=1, B=1.2, W=0.8), Times(F=1, B=2, W=1), Times(F=1.13, B=1.99, W=0.48)):
        formula = bubble("dualpipe", 8, times)
        saved = formula - max(simulate("dualpipe", 8, 20, times).bubble)
        assert 0 <= saved <= times.F * (1 + 1e-9)


@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
def test_zbv_waits_for_the_first_forward_alone_when_times_are_equal(ranks: int) -> None:
    assert bubble("zbv", ranks, EQUAL) == ranks - 1
    assert max(simulate("zbv", ranks, 3 * ranks + 1, EQUAL).bubble) == ranks - 1


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_more_micro_batches_leave_the_bubble_as_it_is(schedule: str) -> None:
    few, many = (max(simulate(schedule, 4, count, UNEQUAL).bubble) for count in (8, 20))
    assert few == pytest.approx(many)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_pipeline_of_one_holder_has_no_bubble(schedule: str) -> None:
    ranks = 2 if schedule == "dualpipe" else 1
    assert bubble(schedule, ranks, EQUAL) == 0
    assert simulate(schedule, ranks, 4, EQUAL).bubble == (0,) * ranks


@pytest.mark.parametrize(
    ("schedule", "ranks", "micro_batches", "message"),
    [
        ("1f1b", 4, 3, "1f1b on 4 ranks needs at least 4 micro-batches a step .*, not 3; choose 4"),
        ("zb1p", 8, 7, "choose 8"),
        ("zbv", 4, 7, "choose 8"),
        ("dualpipe", 8, 15, "dualpipe on 8 ranks needs at least 16 .* not 15; choose 16"),
        ("dualpipe", 8, 17, "even number of micro-batches, .*, not 17; choose 18"),
        ("dualpipe", 7, 20, "even number of ranks, .*, not 7; choose 8"),
        ("dualpipev", 8, 15, "choose 16"),
        ("1f1b", 0, 4, "choose at least 1"),
        ("Dualpip", 8, 16, "is not one of 1f1b, zb1p, zbv, dualpipe, dualpipev; did you mean dualpipe"),
    ],
)
def test_what_cannot_run_is_refused_with_the_nearest_that_can(
    schedule: str, ranks: int, micro_batches: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        simulate(schedule, ranks, micro_batches, EQUAL)
    with pytest.raises(ValueError, match=message):
        check_micro_batches(schedule, ranks, micro_batches)


def test_times_are_durations() -> None:
    for wrong in ({"F": 0}, {"B": -1}, {"W": float("nan")}, {"FB": float("inf")}):
        with pytest.raises(ValueError, match="is not a duration"):
            Times(**wrong)
