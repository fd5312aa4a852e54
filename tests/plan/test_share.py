"""What the ranks of a pipeline hold."""

from dataclasses import replace
from typing import cast

import pytest

from fathom.plan.count import main_parameters, mtp_parameters
from fathom.plan.layout import Layout, Schedule
from fathom.plan.schedule import SCHEDULES, Times, simulate
from fathom.plan.share import in_flight, share_of
from fathom.presets import preset

V3 = preset("v3").model
RANKS = 8


def layout_of(schedule: str, micro_batches: int = 32) -> Layout:
    return Layout(pipeline=RANKS, schedule=cast(Schedule, schedule), micro_batches=micro_batches)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_model_is_held_once_and_in_dualpipe_twice(schedule: str) -> None:
    plain, layout = replace(V3, num_nextn_predict_layers=0), layout_of(schedule)
    times = 2 if schedule == "dualpipe" else 1
    shares = [share_of(plain, layout, rank) for rank in range(RANKS)]
    assert sum(share.dense + share.routed for share in shares) == times * main_parameters(plain)
    assert sum(sum(share.layers.values()) for share in shares) == times * 61


def test_an_mtp_module_lies_with_the_head_and_needs_the_embedding() -> None:
    shares = [share_of(V3, layout_of("1f1b"), rank) for rank in range(RANKS)]
    table = V3.vocab_size * V3.hidden_size
    assert [share.tables // table for share in shares] == [1, 0, 0, 0, 0, 0, 0, 2]
    assert [share.layers.get("mtp", 0) for share in shares] == [0, 0, 0, 0, 0, 0, 0, 1]
    held = sum(share.dense + share.routed for share in shares)
    assert held == main_parameters(V3) + mtp_parameters(V3) + table


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_micro_batches_in_flight_are_those_of_the_schedule_played_out(schedule: str) -> None:
    layout = layout_of(schedule)
    timeline = simulate(schedule, RANKS, layout.micro_batches, Times())
    for rank in range(RANKS):
        changes: list[tuple[float, int]] = []
        for cell in (cell for cell in timeline.cells if cell.rank == rank):
            changes += [(cell.start, 1)] * (cell.kind in ("F", "FB"))
            changes += [(cell.end, -1)] * (cell.kind in ("W", "BW", "FB"))  # kept until the weights have their gradient
        held = most = 0
        for _, change in sorted(changes):
            held += change
            most = max(most, held)
        assert most == in_flight(layout, rank) * len(layout.chunks_of(rank))
    assert in_flight(layout_of(schedule, 4), 0) == 4
