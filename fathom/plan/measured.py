"""A step of a pipeline as its processes measured it, in the terms of the planner's timelines."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any, Literal, NamedTuple

from fathom.plan.schedule import bubble, simulate
from fathom.plan.timeline import Cell, Kind, Timeline, Times, stage_of, stages_of


class Note(NamedTuple):
    """What a process computed when, in seconds of a clock that all processes share."""

    kind: Literal["F", "B", "W", "BW"]
    stage: int
    micro_batch: int
    start: float
    end: float


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A measured step, beside what the planner makes of the mean times of its parts; times in milliseconds."""

    timeline: Timeline
    ideal: Timeline  # the schedule played out with the measured means
    formula: float  # idle share of a rank by the published formula

    @property
    def sentence(self) -> str:
        """The shares of idle time: measured, played out, by formula."""
        return (
            f"{100 * self.timeline.bubble_share:.1f} % of the processes' time was idle; the same parts without "
            f"messages, each taking its mean, leave {100 * self.ideal.bubble_share:.1f} %, and the formula says "
            f"{100 * self.formula:.1f} %."
        )


def to_record(schedule: str, micro_batches: int, notes: Sequence[Sequence[Note]]) -> dict[str, Any]:
    """A step as a run keeps it: the notes of every rank, in microseconds from the first of all."""
    first = min(note.start for of_rank in notes for note in of_rank)
    cells = [[(*n[:3], round(1e6 * (n.start - first)), round(1e6 * (n.end - first))) for n in rank] for rank in notes]
    return {"schedule": schedule, "micro_batches": micro_batches, "notes": cells}


def from_record(record: Mapping[str, Any]) -> Measured:
    """What `to_record` kept, as timelines."""
    schedule, micro_batches = str(record["schedule"]), int(record["micro_batches"])
    notes = [[Note(n[0], n[1], n[2], n[3] / 1e3, n[4] / 1e3) for n in of_rank] for of_rank in record["notes"]]
    ranks = len(notes)
    cells = [cell for rank, of_rank in enumerate(notes) for cell in _cells(schedule, ranks, rank, of_rank)]
    times = _times(cells)
    ideal = simulate(schedule, ranks, micro_batches, times)
    work = micro_batches * stages_of(schedule, ranks) / ranks * (times.F + times.B + times.W)
    idle = max(0.0, bubble(schedule, ranks, times))
    timeline = Timeline(schedule=schedule, ranks=ranks, micro_batches=micro_batches, times=times, cells=cells)
    return Measured(timeline=timeline, ideal=ideal, formula=idle / (work + idle))


def _cells(schedule: str, ranks: int, rank: int, notes: Sequence[Note]) -> list[Cell]:
    """A rank's notes as cells; a backward that began before the forward had ended ran overlapped with it."""
    cells: list[Cell] = []
    for note in sorted(notes, key=lambda note: note.start):
        before = cells[-1] if cells else None
        if before is not None and before.kind == "F" and note.kind == "BW" and note.start < before.end:
            end = max(before.end, note.end)
            cells[-1] = _cell(rank, "FB", before.micro_batch, before.chunk, before.start, end, note.micro_batch)
        else:
            chunk = int(stage_of(schedule, ranks, rank, 0) != note.stage)
            cells.append(_cell(rank, note.kind, note.micro_batch, chunk, note.start, note.end))
    return cells


def _cell(
    rank: int, kind: Kind, micro_batch: int, chunk: int, start: float, end: float, partner: int | None = None
) -> Cell:
    return Cell(
        rank=rank,
        start=start,
        end=end,
        kind=kind,
        micro_batch=micro_batch,
        chunk=chunk,
        direction=0,
        partner=partner,
    )


def _times(cells: Sequence[Cell]) -> Times:
    """Mean times; where the two gradients were never computed apart, each is half of both."""
    lasted: dict[str, list[float]] = {}
    for cell in cells:
        lasted.setdefault(cell.kind, []).append(max(cell.end - cell.start, 1e-3))
    means = {kind: mean(times) for kind, times in lasted.items()}
    half = means["BW"] / 2 if "BW" in means else 1.0
    return Times(F=means["F"], B=means.get("B", half), W=means.get("W", half), FB=means.get("FB"))
