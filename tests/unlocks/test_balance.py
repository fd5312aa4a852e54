"""The card of balance: its figures' law, equal beginnings, a verdict that can go each way."""

from pathlib import Path
from typing import Any

import torch

from fathom.unlocks import balance
from fathom.unlocks.balance import BIAS, BOTH, LOSS, NOTHING
from fathom.unlocks.experiment import Context, Figures
from fathom.unlocks.lesson import final_loss, steps_of, teach


def steps_with(*loads: list[list[float]]) -> list[dict[str, Any]]:
    return [{"expert_shares": layers} for layers in loads]


def test_violation_is_that_of_all_late_tokens_together() -> None:
    even, first, second = [0.25] * 4, [1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]
    assert balance.late_violation(steps_with([even])) == 0
    assert balance.late_violation(steps_with([even, first])) == 3  # of the worst layer
    skewed_early = [[first]] * 12
    assert balance.late_violation(steps_with(*skewed_early, [first], [second], [first], [second])) == 1
    assert balance.late_violation(steps_with(*skewed_early, *[[even]] * 4)) == 0


def test_variants_begin_alike_and_are_trained_once(tmp_path: Path) -> None:
    context = Context(torch.device("cpu"), "toy", tmp_path)
    runs = {name: teach(context, lesson, 0) for name, lesson in balance.variants("toy").items()}
    first = {name: steps_of(run)[0] for name, run in runs.items()}
    assert len({step["loss_main"] for step in first.values()}) == 1  # same weights, same tokens
    assert {str(step["expert_shares"]) for step in first.values()} == {str(first[LOSS]["expert_shares"])}
    assert len({final_loss(run) for run in runs.values()}) == 4  # and then each goes its way
    made = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    again = teach(context, balance.variants("toy")[BOTH], 0)
    assert again.path == runs[BOTH].path and made == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert teach(context, balance.variants("toy")[BOTH], 1).path != again.path


def figures(loss_vio: float, bias_vio: float, bias_loss: float) -> Figures:
    plain = {"max_vio": 2.0, "loss": 4.0}
    return {
        NOTHING: plain,
        LOSS: plain | {"max_vio": loss_vio},
        BIAS: {"max_vio": bias_vio, "loss": bias_loss},
        BOTH: plain,
    }


def test_the_bias_must_balance_better_at_no_price() -> None:
    better = [figures(0.7 + noise, 0.1, 4.0) for noise in (0.0, 0.01, 0.02)]
    assert balance.conclude(better).verdict == "supported"
    assert balance.conclude(better[:1]).verdict == "inconclusive"
    assert balance.conclude([figures(0.1, 0.7 + noise, 4.0) for noise in (0, 0.01)]).verdict == "not supported"
    assert balance.conclude([figures(0.7, 0.1, 4.1 + noise) for noise in (0, 0.001)]).verdict == "not supported"
