"""A measured step in the planner's terms."""

import json

import pytest

from fathom.plan.measured import Note, from_record, to_record
from fathom.plan.schedule import Times, simulate
from fathom.plan.timeline import parts_of, stage_of


@pytest.mark.parametrize(("schedule", "ranks", "micro_batches"), [("1f1b", 4, 6), ("zbv", 2, 5), ("dualpipev", 3, 8)])
def test_a_step_that_goes_as_played_out_is_read_back_as_it_was(schedule: str, ranks: int, micro_batches: int) -> None:
    played = simulate(schedule, ranks, micro_batches, Times(F=2, B=3, W=3, FB=7))  # milliseconds
    notes: list[list[Note]] = [[] for _ in range(ranks)]
    for cell in played.cells:
        start, end = 100 + cell.start / 1e3, 100 + cell.end / 1e3
        stage = stage_of(schedule, ranks, cell.rank, cell.chunk)
        if cell.kind == "FB":  # the forward begins, the backward ends last
            other = next(part for part in parts_of(schedule, ranks, cell.rank, cell) if part.kind == "B")
            notes[cell.rank] += [Note("BW", other.stage, other.micro_batch, start + 1e-4, end)]
            notes[cell.rank] += [Note("F", stage, cell.micro_batch, start, end - 1e-4)]
        else:
            notes[cell.rank].append(Note(cell.kind, stage, cell.micro_batch, start, end))
    found = from_record(json.loads(json.dumps(to_record(schedule, micro_batches, notes))))
    by_place = {(c.rank, round(c.start, 3)): (c.kind, c.micro_batch, c.chunk, c.partner) for c in found.timeline.cells}
    assert by_place == {(c.rank, round(c.start, 3)): (c.kind, c.micro_batch, c.chunk, c.partner) for c in played.cells}
    assert found.timeline.bubble_share == pytest.approx(played.bubble_share, abs=1e-3)
    assert found.ideal.makespan == pytest.approx(played.makespan, rel=1e-3)
    assert f"{100 * found.ideal.bubble_share:.1f} %" in found.sentence


def test_the_formula_is_that_of_the_measured_means() -> None:
    notes = [[Note("F", rank, 0, rank, rank + 1), Note("BW", rank, 0, 5 - 2 * rank, 7 - 2 * rank)] for rank in (0, 1)]
    found = from_record(to_record("1f1b", 2, notes))
    assert found.timeline.times.F == 1000 and found.timeline.times.W == 1000
    assert found.formula == pytest.approx(3 / (2 * 3 + 3))  # (ranks - 1) (F + B) of one more micro-batch
