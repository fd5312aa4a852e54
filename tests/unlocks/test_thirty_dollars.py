"""The card of the thirty dollars: what steps cost, runs shared with other cards, the reader's own, a verdict."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fathom.plan.cost import ORDINARY_MFU, total, training
from fathom.plan.hardware import HARDWARE, Devices
from fathom.presets import LAPTOP, TINYZERO
from fathom.runs import Run
from fathom.unlocks import r1_zero, thirty_dollars
from fathom.unlocks.experiment import Context, Figures
from fathom.unlocks.thirty_dollars import GRPO, PPO, spending


def test_spending_adds_up_the_clocks_of_the_steps() -> None:
    steps = [{"seconds": 36.0, "accuracy": step / 100} for step in range(1, 25)]
    points = spending(steps, 2.0)
    assert len(points) == 12 and points[-1] == (pytest.approx(24 * 36 / 3600 * 2.0), pytest.approx(0.235))
    assert points[0] == (pytest.approx(0.04), pytest.approx(0.015))


def test_grpo_is_the_run_of_the_card_r1_zero_and_the_readers_own_stands_beside_it(tmp_path: Path) -> None:
    own = Run(tmp_path / "own")
    own.path.mkdir()
    own.write_config(replace(LAPTOP, dollars_per_hour=4.0))
    for step in range(1, 4):
        own.append_metrics("grpo", step, accuracy=step / 10, seconds=900.0)
    context = Context(torch.device("cpu"), "toy", tmp_path, own_run=own.path)
    zero = r1_zero.measure(context, 0)
    made = set((tmp_path / "checkpoints").iterdir())
    found = thirty_dollars.measure(context, 0)
    assert found[GRPO] == zero[r1_zero.ZERO]["accuracy"] and found["base"] == zero["base"]["accuracy"]
    assert len(set((tmp_path / "checkpoints").iterdir()) - made) == 1  # PPO alone is new
    assert found["own"] == [(1.0, 0.1), (2.0, 0.2), (3.0, pytest.approx(0.3))]
    assert ("your run", "30.0% (training)", "3.0000, GRPO alone") in thirty_dollars.conclude([found]).rows


def test_the_planned_sum_leaves_pretraining_out() -> None:
    devices = Devices(count=1, hardware=HARDWARE["h100"])
    line = training("updates", TINYZERO.pretrain, TINYZERO.model, devices, ORDINARY_MFU, tokens=400 * 512 * 1024)
    assert total([line]).dollars < thirty_dollars.planned_dollars() < 30


def figures(ppo: float, grpo: float, dollars: float) -> Figures:
    timed = {"pretraining": 0.0, PPO: [(dollars / 2, 0.1), (dollars, ppo)], GRPO: [(dollars / 2, 0.1), (dollars, grpo)]}
    return {"base": 0.05, PPO: ppo, GRPO: grpo, "planned": 11.0, "own": [], "timed": timed}


def test_both_must_learn_for_less_than_the_sum() -> None:
    noise = (0.0, 0.01, 0.02)
    assert thirty_dollars.conclude([figures(0.5 + n, 0.6 + n, 1 + n) for n in noise]).verdict == "supported"
    assert thirty_dollars.conclude([figures(0.5, 0.6, 1.0)]).verdict == "inconclusive"
    assert thirty_dollars.conclude([figures(0.06 + n, 0.6, 1.0) for n in noise]).verdict == "not supported"
    assert thirty_dollars.conclude([figures(0.5 + n, 0.6, 40 + n) for n in noise]).verdict == "not supported"
