"""A budget: what is spent, when a stage ends, what more would cost."""

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fathom.parallel.world import World
from fathom.rl.budget import Bill, is_plateau, next_points, parse_dollars, slope_of
from fathom.rl.loop import train_grpo
from fathom.runs import Run
from fathom.train.loop import Place


def curve(first: float, rise: float, steps: int, seed: int = 0, noise: float = 0.03) -> list[float]:
    rng = random.Random(seed)
    return [first + rise * step + rng.gauss(0, noise) for step in range(steps)]


def test_the_line_is_that_of_numpy() -> None:
    values = curve(0.2, 0.004, 60)
    (rise, _), covariance = np.polyfit(np.arange(60), values, 1, cov=True)
    found = slope_of(values)
    assert found.value == pytest.approx(rise)
    assert found.standard_error == pytest.approx(covariance[0, 0] ** 0.5)


def test_a_plateau_is_told_from_a_rise_and_from_noise() -> None:
    assert is_plateau(curve(0.5, 0.0, 100, noise=0.005), 100, 0.02)
    assert is_plateau(curve(0.5, -0.003, 100), 100, 0.02)
    assert not is_plateau(curve(0.5, 0.003, 100), 100, 0.02)
    assert not is_plateau(curve(0.5, 0.0, 100, noise=0.2), 100, 0.02)  # nobody can tell
    assert not is_plateau(curve(0.5, 0.0, 99, noise=0.005), 100, 0.02)
    rose = curve(0.1, 0.005, 100, noise=0.005)
    assert is_plateau(rose + [0.6] * 100, 100, 0.02) and not is_plateau(rose, 100, 0.02)


def test_the_next_points_are_priced_by_the_line_or_not_at_all() -> None:
    exact = [0.1 + 0.002 * step for step in range(100)]
    assert "about $2.50 (2.50 to 2.50)" in next_points(exact, 0.1, 50)  # 25 steps at ten cents
    assert "cannot be told: the curve does not rise measurably" in next_points(curve(0.5, 0.0, 100), 0.1, 100)
    assert "cannot be told from 3 steps" in next_points([0.1, 0.2, 0.3], 0.1, 100)
    assert "no 5 points left" in next_points([0.97 + 0.0001 * step for step in range(100)], 0.1, 50)


def test_a_bill_outlives_its_process_and_keeps_a_reserve(tmp_path: Path) -> None:
    bill = Bill(tmp_path / "bill.json", dollars_per_hour=36.0)  # a cent a second
    assert bill.dollars == 0 and bill.affords_a_step(0.01)
    for seconds in (2.0, 3.0):
        bill.add(seconds)
    assert bill.dollars == pytest.approx(0.05)
    assert bill.affords_a_step(0.12) and not bill.affords_a_step(0.11)  # the longest step twice
    assert Bill(tmp_path / "bill.json", 36.0).dollars == pytest.approx(0.05)


def test_training_ends_within_its_budget_with_a_checkpoint_and_counts_what_was_spent_before(
    policy, tmp_path: Path
) -> None:
    place = Place(Run(tmp_path), "grpo", World(0, 1, torch.device("cpu")))
    config = replace(policy.config, steps=500, prompts=2, group=2, budget_dollars=1.0, plateau_steps=10_000)
    price = 3600 / 6.0  # a dollar is six seconds
    state = train_grpo(place, config, policy.model, policy.task, policy.tokenizer, 0, price)
    lines = Run(tmp_path).read_metrics("grpo")
    assert 0 < state.step < 500 and lines[-1]["stopped"] == "budget" and len(lines) == state.step
    assert 0.2 < lines[-1]["spent_dollars"] <= 1.0
    assert (tmp_path / "grpo" / f"step_{state.step:06d}").exists()
    again = train_grpo(place, config, policy.model, policy.task, policy.tokenizer, 0, price)
    assert again.step == state.step and len(Run(tmp_path).read_metrics("grpo")) == state.step


def test_sums_are_read_as_people_write_them() -> None:
    assert [parse_dollars(text) for text in ("30usd", "30", "$2.50", "1 USD")] == [30.0, 30.0, 2.5, 1.0]
    for text in ("", "thirty", "0", "-3usd", "nan", "inf"):
        with pytest.raises(ValueError, match=r"--budget .* is no sum of dollars above 0"):
            parse_dollars(text)


def test_a_budget_without_a_price_is_refused(policy, tmp_path: Path) -> None:
    place = Place(Run(tmp_path), "grpo", World(0, 1, torch.device("cpu")))
    config = replace(policy.config, budget_dollars=1.0)
    with pytest.raises(ValueError, match="needs the machine's price"):
        train_grpo(place, config, policy.model, policy.task, policy.tokenizer, 0)
