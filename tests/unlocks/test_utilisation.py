"""The card of utilisation: V3's shares by hand, ours from the clock, a verdict that can go each way."""

from pathlib import Path

import pytest
import torch

from fathom.bench.breakdown import PARTS
from fathom.config import ModelConfig
from fathom.presets import PRESETS
from fathom.unlocks import utilisation
from fathom.unlocks.experiment import Context, Figures
from fathom.unlocks.utilisation import CAUSAL, FORCED, FP8, ROUTED, WEIGHTS, WHOLE, Step


def test_v3s_shares_follow_from_its_hours() -> None:
    peak = 2_664e3 * 3600 * 989.4e12
    found = utilisation.v3_shares()
    assert found[WEIGHTS] == pytest.approx(14.8e12 * 219.75e9 / peak, rel=1e-3)  # 6 x 36.6 billion weights
    assert found[CAUSAL] == pytest.approx(14.8e12 * 250.46e9 / peak, rel=1e-3)
    assert found[WHOLE] == pytest.approx(14.8e12 * 281.16e9 / peak, rel=1e-3)
    assert found[FP8] == pytest.approx(found[CAUSAL] / 2, rel=1e-3)
    assert found[WEIGHTS] == pytest.approx(0.35, abs=0.01)


def test_attention_is_all_that_the_ways_differ_in() -> None:
    model = PRESETS["v3"].model
    short, long = (utilisation.operations(Step(model=model, rows=2, seq_len=n, side="v3")) for n in (64, 128))
    assert long[WEIGHTS] == 2 * short[WEIGHTS]
    for counted in (short, long):
        assert counted[WHOLE] - counted[WEIGHTS] == pytest.approx(2 * (counted[CAUSAL] - counted[WEIGHTS]))
    assert long[CAUSAL] - long[WEIGHTS] == pytest.approx(4 * (short[CAUSAL] - short[WEIGHTS]))


def test_a_gpus_shape_is_the_benchs() -> None:
    assert utilisation.shape("gpu") == PRESETS["small"].model
    assert isinstance(utilisation.shape("cpu"), ModelConfig)


def test_every_part_of_a_step_is_found_on_a_processor_too(tmp_path: Path) -> None:
    found = utilisation.measure(Context(torch.device("cpu"), "toy", tmp_path), 0)
    for name in (ROUTED, FORCED):
        parts = found["timed"][name]["parts_ms"]
        assert all(
            parts[part] > 0 for part in ("attention", "experts", "dense", "router", "head and loss", "optimizer")
        )
        assert parts["other"] < sum(parts.values()) / 2
    assert found["timed"]["peak"] == found["timed"]["roof"] > 0 and not found["fp8_units"]


def figures(seconds: float, fp8_units: bool = False) -> Figures:
    flops = {WEIGHTS: 8e12, CAUSAL: 9e12, WHOLE: 10e12}
    step = {"seconds": seconds, "parts_ms": {part: 2.0 if part == PARTS[0] else 1.0 for part in PARTS}}
    timed = {"peak": 2e13, "roof": 2e13, ROUTED: step, FORCED: step}
    return {"first_loss": {}, "flops": {ROUTED: flops, FORCED: flops}, "fp8_units": fp8_units, "timed": timed}


def test_shares_come_from_the_clock() -> None:
    found = utilisation.shares(figures(1.0), ROUTED)
    assert found == {WEIGHTS: 0.4, CAUSAL: 0.45, WHOLE: 0.5}
    assert utilisation.shares(figures(1.0, fp8_units=True), ROUTED)[FP8] == 0.225
    assert utilisation.mean_part([figures(1.0)], ROUTED, PARTS[0]) == pytest.approx(2 / (len(PARTS) + 1))


def test_the_step_must_use_as_much_as_retold() -> None:
    noise = (0.0, 0.01, 0.02)
    assert utilisation.conclude([figures(1.0 + n) for n in noise]).verdict == "supported"
    assert utilisation.conclude([figures(2.0 + n) for n in noise]).verdict == "not supported"
    assert utilisation.conclude([figures(1.0)]).verdict == "inconclusive"
