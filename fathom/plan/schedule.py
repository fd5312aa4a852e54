"""Pipeline schedules: how long a step leaves each rank idle, by the published formulas and by playing it out.

Times are of one chunk and one micro-batch; what ranks send each other is taken to arrive at once.
"""

import difflib
from collections.abc import Callable, Sequence

from fathom.plan.drawing import draw
from fathom.plan.orders import (
    dualpipe_order,
    dualpipe_v_order,
    one_forward_one_backward,
    zero_bubble,
    zero_bubble_v,
)
from fathom.plan.soundness import check
from fathom.plan.timeline import Cell, Part, Step, Timeline, Times, needs, parts_of, stages_of

__all__ = [
    "SCHEDULES",
    "Cell",
    "Step",
    "Timeline",
    "Times",
    "bubble",
    "check",
    "check_micro_batches",
    "draw",
    "dualpipe_order",
    "least_micro_batches",
    "simulate",
    "stages_of",
]

ORDERS: dict[str, Callable[[int, int, int], list[Step]]] = {
    "1f1b": one_forward_one_backward,
    "zb1p": zero_bubble,
    "zbv": zero_bubble_v,
    "dualpipe": dualpipe_order,
    "dualpipev": dualpipe_v_order,
}
SCHEDULES = tuple(ORDERS)


def bubble(schedule: str, ranks: int, times: Times) -> float:
    """The idle time of a rank in one step, by formula (V3 Table 2), in the unit of `times`.

    `ranks` are devices; the V schedules have twice as many stages. The formulas are exact where the times are equal
    and can err where they are not: below zero, even, when W is long. ZBV has none published, so it is played out.
    """
    _check_ranks(schedule, ranks)
    whole = times.B + times.W
    match schedule:
        case "1f1b":
            return (ranks - 1) * (times.F + whole)
        case "zb1p":
            return (ranks - 1) * (times.F + whole - 2 * times.W)
        case "zbv":
            return max(simulate(schedule, ranks, least_micro_batches(schedule, ranks), times).bubble)
        case _:
            deep = ranks // 2 if schedule == "dualpipe" else ranks
            return (deep - 1) * (times.overlapped + whole - 3 * times.W)


def simulate(schedule: str, ranks: int, micro_batches: int, times: Times) -> Timeline:
    """Play a schedule out: every rank keeps its order and starts each step as soon as what it needs has ended.

    Raises ValueError for a number of ranks or micro-batches that the schedule cannot work with.
    """
    check_micro_batches(schedule, ranks, micro_batches)
    orders = [ORDERS[schedule](ranks, micro_batches, rank) for rank in range(ranks)]
    cells = _play(schedule, orders, times)
    return Timeline(schedule=schedule, ranks=ranks, micro_batches=micro_batches, times=times, cells=cells)


def least_micro_batches(schedule: str, ranks: int) -> int:
    """The fewest micro-batches a step that fill the pipeline."""
    return ranks if schedule in ("1f1b", "zb1p") else 2 * ranks


def check_micro_batches(schedule: str, ranks: int, micro_batches: int) -> None:
    """Raise ValueError, with the rule and the nearest number that satisfies it, if the schedule cannot run."""
    _check_ranks(schedule, ranks)
    least = least_micro_batches(schedule, ranks)
    if micro_batches < least:
        each = "one for every rank" if least == ranks else "two for every rank"
        raise ValueError(
            f"{schedule} on {ranks} ranks needs at least {least} micro-batches a step ({each}), not {micro_batches}; "
            f"choose {least}"
        )
    if schedule == "dualpipe" and micro_batches % 2:
        raise ValueError(
            f"dualpipe needs an even number of micro-batches, half of them for each direction, not {micro_batches}; "
            f"choose {micro_batches + 1}"
        )


def _check_ranks(schedule: str, ranks: int) -> None:
    if schedule not in ORDERS:
        near = difflib.get_close_matches(schedule.lower(), SCHEDULES, n=1, cutoff=0.3)
        meant = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"schedule {schedule!r} is not one of {', '.join(SCHEDULES)}{meant}")
    if ranks < 1:
        raise ValueError(f"a pipeline of {ranks} ranks does not exist; choose at least {1 + (schedule == 'dualpipe')}")
    if schedule == "dualpipe" and ranks % 2:
        raise ValueError(
            f"dualpipe needs an even number of ranks, each paired with its mirror, not {ranks}; choose {ranks + 1}"
        )


def _play(schedule: str, orders: Sequence[Sequence[Step]], times: Times) -> list[Cell]:
    ranks, stages = len(orders), stages_of(schedule, len(orders))
    ends: dict[Part, float] = {}
    cells: list[Cell] = []
    free, place = [0.0] * ranks, [0] * ranks
    left = sum(map(len, orders))
    while left:
        before = left
        for rank, order in enumerate(orders):
            while place[rank] < len(order):
                step = order[place[rank]]
                parts = list(parts_of(schedule, ranks, rank, step))
                awaited = [need for part in parts for need in needs(part, stages) if need not in parts]
                if not all(need in ends for need in awaited):
                    break
                start = max([free[rank], *(ends[need] for need in awaited)])
                free[rank] = start + times.of(step.kind)
                ends |= dict.fromkeys(parts, free[rank])
                cells.append(_cell(schedule, rank, step, start, free[rank]))
                place[rank] += 1
                left -= 1
        assert left < before, f"{schedule} waits for itself"
    return cells


def _cell(schedule: str, rank: int, step: Step, start: float, end: float) -> Cell:
    return Cell(
        rank=rank,
        start=start,
        end=end,
        kind=step.kind,
        micro_batch=step.micro_batch,
        chunk=step.chunk,
        direction=step.chunk if schedule == "dualpipe" else 0,
        partner=step.partner,
    )
