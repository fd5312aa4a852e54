"""The card of the pipeline: medians of measured steps, equal losses, the formulas of Table 2, a verdict."""

from pathlib import Path

import pytest
import torch

from fathom.plan.measured import Note, from_record, to_record
from fathom.plan.schedule import least_micro_batches
from fathom.plan.timeline import stages_of
from fathom.unlocks import pipeline
from fathom.unlocks.experiment import Context, Figures
from fathom.unlocks.pipeline import DUAL, PLAIN, ZERO


def step_of(pause: float) -> list[list[Note]]:
    """Two ranks, two micro-batches by 1F1B, a second a pass and two a way back; the first backward comes late."""
    first = [Note("F", 0, 0, 0, 1), Note("F", 0, 1, 1, 2), Note("BW", 0, 0, 4 + pause, 6 + pause)]
    second = [Note("F", 1, 0, 1, 2), Note("BW", 1, 0, 2, 4), Note("F", 1, 1, 4, 5), Note("BW", 1, 1, 5, 7)]
    return [[*first, Note("BW", 0, 1, 7 + pause, 9 + pause)], second]


def test_shares_are_medians_over_the_steps() -> None:
    steps = [from_record(to_record("1f1b", 2, step_of(pause))) for pause in (0.0, 0.0, 9.0)]
    found = pipeline.idle_shares(steps)
    assert found["ms"] == pytest.approx(9000)
    assert found["idle"] == pytest.approx(6 / 18)  # 12 of 18 seconds are work
    assert found["formula"] == pytest.approx(3 / 9) and found["played"] == pytest.approx(6 / 18)


def test_every_schedule_can_run_what_it_is_given() -> None:
    for size in ("toy", "cpu", "gpu"):
        for passing in pipeline.variants(size).values():
            c = passing.parallel
            assert passing.micro_batches >= least_micro_batches(c.schedule, c.pipeline)
            assert passing.model.num_hidden_layers % stages_of(c.schedule, c.pipeline) == 0  # stages of equal work


@pytest.mark.ranks
def test_schedules_train_the_same_and_leave_threads_alone(tmp_path: Path) -> None:
    torch.set_num_threads(2)
    found = pipeline.measure(Context(torch.device("cpu"), "toy", tmp_path), 0)
    assert torch.get_num_threads() == 2
    assert found["loss"][ZERO] == pytest.approx(found["loss"][PLAIN], rel=1e-4)
    assert found["loss"][DUAL] == pytest.approx(found["loss"][PLAIN], rel=1e-4)
    timed = found["timed"]
    assert all(0 < timed[name][key] < 1 for name in (PLAIN, ZERO, DUAL) for key in ("idle", "played"))
    # 1F1B over 2 ranks and 8 micro-batches, whatever the times: a pass and its way back idle of nine
    assert timed[PLAIN]["formula"] == pytest.approx(1 / 9)


def figures(plain: float, zero: float, dual: float) -> Figures:
    idle = {PLAIN: plain, ZERO: zero, DUAL: dual}
    timed = {name: {"idle": share, "played": 0.1, "formula": 0.1, "ms": 9.0} for name, share in idle.items()}
    return {"loss": dict.fromkeys(idle, 4.0), "timed": timed}


def test_both_later_schedules_must_be_less_idle() -> None:
    noise = (0.0, 0.01, 0.02)
    assert pipeline.conclude([figures(0.2 + n, 0.1, 0.05) for n in noise]).verdict == "supported"
    assert pipeline.conclude([figures(0.2, 0.1, 0.05)]).verdict == "inconclusive"
    assert pipeline.conclude([figures(0.2, 0.1 + n, 0.3 + n) for n in noise]).verdict == "not supported"
