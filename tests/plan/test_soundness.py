"""The checker finds what is wrong with a timeline that somebody spoilt."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from fathom.plan.schedule import Cell, Timeline, Times, check, simulate

Spoil = Callable[[list[Cell]], list[Cell]]
GOOD = simulate("dualpipe", 4, 8, Times(F=1, B=1, W=1))


def index(kind: str, rank: int) -> int:
    return next(place for place, cell in enumerate(GOOD.cells) if cell.kind == kind and cell.rank == rank)


def change(kind: str, rank: int, **fields: object) -> Spoil:
    def spoil(cells: list[Cell]) -> list[Cell]:
        place = index(kind, rank)
        return [*cells[:place], replace(cells[place], **fields), *cells[place + 1 :]]

    return spoil


def drop_last(cells: list[Cell]) -> list[Cell]:
    return cells[:-1]


def repeat_last(cells: list[Cell]) -> list[Cell]:
    last = max(cells, key=lambda cell: cell.end)
    return [*cells, replace(last, start=last.end, end=last.end + 1)]


def start_early(cells: list[Cell]) -> list[Cell]:
    """Rank 2's work as it is, but all of it sooner than rank 1 delivers."""
    return [replace(cell, start=cell.start - 1, end=cell.end - 1) if cell.rank == 2 else cell for cell in cells]


def test_a_good_timeline_passes() -> None:
    check(GOOD)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (drop_last, "runs 0 times instead of 1"),
        (repeat_last, "runs 2 times instead of 1"),
        (change("F", 0, micro_batch=3), "runs [02] times instead of 1"),
        (change("FB", 1, partner=3), "runs [02] times instead of 1"),
        (change("F", 0, end=1.5), "takes 1.5, not its given time"),
        (change("FB", 0, start=0.0, end=3.0), "does two things at"),
        (change("F", 0, direction=1), "wrong direction"),
        (start_early, "starts at .*, before . of micro-batch . on stage . has ended"),
    ],
)
def test_a_spoilt_one_is_caught(spoil: Spoil, message: str) -> None:
    spoilt: Timeline = replace(GOOD, cells=spoil(list(GOOD.cells)))
    with pytest.raises(ValueError, match=message):
        check(spoilt)
