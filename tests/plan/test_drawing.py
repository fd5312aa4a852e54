"""A pipeline drawn as text."""

import re

import pytest

from fathom.plan.schedule import SCHEDULES, Times, draw, simulate

EQUAL = Times(F=1, B=1, W=1)


def test_1f1b_by_hand() -> None:
    assert draw(simulate("1f1b", 2, 3, EQUAL), width=31).splitlines() == [
        "1f1b, 2 ranks, 3 micro-batches: a step takes 12, of which a rank idles 3 (25.0 %)",
        "rank 0 F0F1····G0  F2G1  ··G2  ",
        "rank 1 ··F0G0  F1G1  F2G2  ····",
        "",
        "F  forward",
        "G  both gradients",
    ]


def test_the_other_direction_is_in_small_letters() -> None:
    lines = draw(simulate("dualpipe", 2, 4, EQUAL), width=60).splitlines()
    assert lines[1:3] == [
        "rank 0 F0  f2  F1  g2      f3G0        g3      B1  W1  ",
        "rank 1 f2  F0  f3  G0      F1g2        G1      b3  w3  ",
    ]
    assert lines[-1] == "small letters: micro-batches from the last rank"


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("width", [8, 40, 100, 400])
def test_rows_are_equally_long_and_never_too_wide(schedule: str, width: int) -> None:
    timeline = simulate(schedule, 4, 8, Times(F=1, B=1.3, W=0.6))
    rows = draw(timeline, width).splitlines()[1:5]
    assert len(set(map(len, rows))) == 1
    assert len(rows[0]) <= max(width, len("rank 0 ") + 1)


def test_idle_columns_are_the_bubble() -> None:
    for row in draw(simulate("dualpipe", 8, 20, EQUAL), width=80).splitlines()[1:9]:
        assert row.count("·") == 6 and len(row) == len("rank 0 ") + 66


def test_colors_change_no_character() -> None:
    timeline = simulate("zbv", 4, 8, EQUAL)
    plain, colored = draw(timeline, 120), draw(timeline, 120, color=True)
    assert "\x1b" not in plain and "\x1b" in colored
    assert re.sub(r"\x1b\[[\d;]*m", "", colored) == plain
