"""Speeds: by a given MFU exactly, and predicted in the right order."""

from dataclasses import replace

import pytest

from fathom.config import ModelConfig
from fathom.plan.count import train_flops_per_token
from fathom.plan.hardware import parse_devices
from fathom.plan.layout import Layout, Optimizer
from fathom.plan.throughput import idle_share, throughput
from fathom.presets import preset

V3 = replace(preset("v3").model, num_nextn_predict_layers=0)
AS_V3 = Layout(shard=128, expert=64, pipeline=16, schedule="dualpipe", micro_batches=120, precision="fp8")


def test_the_published_mfu_gives_the_published_speed() -> None:
    found = throughput(V3, AS_V3, parse_devices("2048xH800"), 4096, mfu=0.3905)
    assert found.tokens_per_s * 86_400 / 1e9 == pytest.approx(272.8, rel=0.002)  # ISCA'25 Table 4
    assert found.step_seconds == pytest.approx(19.926, rel=0.002)
    assert found.mfu == 0.3905
    assert sum(found.parts.values()) == pytest.approx(found.step_seconds)


def test_the_bubble_is_the_schedules_share_of_a_step() -> None:
    assert idle_share(Layout(data=8)) == 0
    # 1F1B on 8 ranks idles for 7 (F + B + W) of a step of that many more (V3 Table 2)
    assert idle_share(Layout(pipeline=8, micro_batches=56)) == pytest.approx(7 / 63)
    assert idle_share(AS_V3) == pytest.approx(14 * 1 / (14 + 3 * 120))
    shares = [idle_share(Layout(pipeline=8, schedule=s, micro_batches=56)) for s in ("dualpipe", "dualpipev", "zb1p")]
    # chunks of DualPipeV are half as long, as are its waits for each
    assert shares == pytest.approx([6 / (6 + 168), 7 / (7 + 168), 7 / (7 + 168)])


def test_v3_is_predicted_within_a_third_of_its_run() -> None:
    found = throughput(preset("v3").model, AS_V3, parse_devices("2048xH800"), 4096)
    assert found.tokens_per_s == pytest.approx(272.8e9 / 86_400, rel=0.33)


def test_mfu_is_the_models_own_arithmetic_over_the_peak() -> None:
    small, devices = preset("small").model, parse_devices("1xH200")
    found = throughput(small, Layout(micro_batch_rows=8), devices, 4096)
    assert found.mfu == pytest.approx(found.tokens_per_s * train_flops_per_token(small, 4096) / 989.4e12)
    assert sum(found.parts.values()) == pytest.approx(found.step_seconds)
    assert all(seconds >= 0 for seconds in found.parts.values())


def test_what_makes_training_slower_is_predicted_so() -> None:
    small, one, two = preset("small").model, parse_devices("1xH200"), parse_devices("2xH200")
    plain = throughput(small, Layout(micro_batch_rows=8), one, 4096)
    again = throughput(small, Layout(micro_batch_rows=8, recompute="full"), one, 4096)
    assert again.tokens_per_s < plain.tokens_per_s
    twice = throughput(small, Layout(data=2, micro_batch_rows=8), two, 4096)
    assert 1.8 * plain.tokens_per_s < twice.tokens_per_s < 2 * plain.tokens_per_s
    older = throughput(small, Layout(micro_batch_rows=8), parse_devices("1xA100"), 4096)
    assert older.tokens_per_s < plain.tokens_per_s
    tiny = throughput(preset("laptop").model, Layout(), one, 128)
    assert tiny.parts["launches"] > 0.5 * tiny.step_seconds


SMALL = preset("small").model
MOONLIGHT = replace(preset("moonlight").model, num_hidden_layers=5)


@pytest.mark.parametrize(
    ("config", "rows", "seq_len", "optimizer", "step_ms"),
    [
        (SMALL, 8, 4096, "adamw_bf16", 402.61),
        (SMALL, 4, 2048, "adamw", 122.46),
        (preset("llama-3.2-1b").model, 2, 4096, "adamw", 427.0),
        (MOONLIGHT, 4, 4096, "adamw_bf16", 909.96),
        (replace(SMALL, num_nextn_predict_layers=1), 4, 4096, "adamw_bf16", 289.72),
    ],
)
def test_the_runs_that_two_terms_were_fitted_to(
    config: ModelConfig, rows: int, seq_len: int, optimizer: Optimizer, step_ms: float
) -> None:
    layout = Layout(micro_batch_rows=rows, optimizer=optimizer)
    found = throughput(config, layout, parse_devices("1xH200"), seq_len)
    assert found.step_seconds * 1e3 == pytest.approx(step_ms, rel=0.1)  # docs/results/2026-11-23-h200.md


def test_rows_travel_to_experts_alone() -> None:
    one = parse_devices("1xH200")
    dense = throughput(preset("llama-3.2-1b").model, Layout(), one, 4096)
    short, long = (throughput(SMALL, Layout(micro_batch_rows=rows), one, 4096) for rows in (4, 8))
    assert dense.parts["routing"] == 0 and long.parts["routing"] == pytest.approx(2 * short.parts["routing"])
    # 9 layers, 6 experts a token, 1,024 wide, 160 bytes of 4.8 TB/s at 89 %
    assert short.parts["routing"] == pytest.approx(4 * 4096 * 9 * 6 * 1024 * 160 / (0.89 * 4.8e12))


@pytest.mark.parametrize("mfu", [0.0, 1.5, -0.1])
def test_an_mfu_is_a_share(mfu: float) -> None:
    with pytest.raises(ValueError, match="is no share of the peak"):
        throughput(V3, AS_V3, parse_devices("2048xH800"), 4096, mfu=mfu)
