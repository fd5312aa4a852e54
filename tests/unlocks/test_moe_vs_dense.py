"""The card of experts: equal operations and parameters are equal, curves, a verdict that can go each way."""

from dataclasses import replace

import pytest
import torch

from fathom.model import Transformer
from fathom.plan.count import main_parameters
from fathom.unlocks import moe_vs_dense
from fathom.unlocks.experiment import Figures, Size
from fathom.unlocks.lesson import baseline, sized
from fathom.unlocks.moe_vs_dense import ACTIVE, EXPERT, TOTAL


@pytest.mark.parametrize("size", ["toy", "cpu", "gpu"])
def test_what_is_called_equal_is_equal(size: Size) -> None:
    lessons = moe_vs_dense.variants(size)
    flops = {name: moe_vs_dense.flops_per_token(lesson) for name, lesson in lessons.items()}
    total = {name: main_parameters(lesson.model) for name, lesson in lessons.items()}
    assert flops[ACTIVE] == pytest.approx(flops[EXPERT], rel=0.005)
    assert total[TOTAL] == pytest.approx(total[EXPERT], rel=0.005)
    assert flops[TOTAL] > 1.1 * flops[EXPERT] and total[ACTIVE] < total[EXPERT] / 1.1


def test_a_model_is_sized_to_within_half_a_width() -> None:
    dense = baseline("toy").model
    with torch.device("meta"):
        for wanted in (130_000, 151_000):
            counted = sum(p.numel() for p in Transformer(sized(dense, wanted)).parameters())
            assert abs(counted - wanted) <= 3 * dense.hidden_size * dense.num_hidden_layers / 2
    assert sized(replace(dense, intermediate_size=7), main_parameters(dense)) == dense


def test_a_curve_takes_every_step_once() -> None:
    losses = [float(step) for step in range(25)]
    points = moe_vs_dense.curve(losses, flops=2.0)
    assert points[0] == (4.0, 0.5) and points[-1] == (50.0, 23.0) and len(points) == 12
    assert moe_vs_dense.curve([3.0, 1.0], flops=1.0) == [(1.0, 3.0), (2.0, 1.0)]


def figures(dense: float, experts: float) -> Figures:
    def of(loss: float, flops: float) -> Figures:
        return {"loss": loss, "parameters": 1000, "flops_per_token": flops, "curve": [[1e12, 5.0], [2e12, loss]]}

    return {ACTIVE: of(dense, 1e6), EXPERT: of(experts, 1e6), TOTAL: of(3.5, 4e6)}


def test_experts_must_beat_the_dense_model_of_equal_operations() -> None:
    better = [figures(4.0, 3.9 + noise) for noise in (0.0, 0.01)]
    assert moe_vs_dense.conclude(better[:1]).verdict == "inconclusive"
    better.append(figures(4.0, 3.905))
    result = moe_vs_dense.conclude(better)
    assert result.verdict == "supported" and result.figures["operations"] == 0.25
    assert moe_vs_dense.conclude([figures(3.8, 3.9 + noise) for noise in (0, 0.001)]).verdict == "not supported"
