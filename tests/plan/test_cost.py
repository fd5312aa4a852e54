"""The published bills, to the dollar, and the arithmetic behind them."""

from dataclasses import replace

import pytest

from fathom.plan.cost import (
    R1_GPU_HOURS,
    affordable_tokens,
    context_extension,
    cost_lines,
    fitted_mfu,
    gpu_hours,
    known_mfu,
    reinforcement,
    total,
    train_tokens,
    v3_mfu,
)
from fathom.plan.count import train_flops_per_token
from fathom.plan.hardware import HARDWARE, Devices, parse_devices
from fathom.presets import preset

V3, H800 = preset("v3"), parse_devices("2048xH800")


def test_the_bill_of_v3() -> None:
    assert 14.8 * 180e3 == 2_664e3
    lines = cost_lines(V3, H800, v3_mfu(), tokens=14.8e12)
    hours = {line.name: line.gpu_hours for line in lines if line.included}
    assert hours == pytest.approx({"pretraining": 2_664e3, "context extension": 119e3, "post-training": 5e3})
    dollars = {line.name: line.dollars for line in lines if line.included}
    assert dollars == pytest.approx({"pretraining": 5.328e6, "context extension": 0.238e6, "post-training": 0.010e6})
    assert total(lines).gpu_hours == pytest.approx(2_788e3) and total(lines).dollars == pytest.approx(5.576e6)
    assert lines[0].hours / 24 == pytest.approx(54.2, abs=0.05)
    assert lines[1].tokens == pytest.approx(125.8e9, rel=1e-3)
    assert total(lines).energy_kwh == pytest.approx(2_788e3 * 0.7)


def test_r1_comes_on_top_and_is_not_in_the_sum() -> None:
    later = [line for line in cost_lines(V3, H800, v3_mfu()) if not line.included]
    assert [line.name for line in later] == list(R1_GPU_HOURS)
    assert sum(line.gpu_hours for line in later) == pytest.approx(147e3)
    assert sum(line.dollars for line in later) == pytest.approx(294e3)
    assert 512 * 198 == 101_376 and 512 * 80 == 40_960  # the hours that the text of R1 gives


def test_the_preset_trains_on_v3s_tokens() -> None:
    assert train_tokens(V3.pretrain) == 14.8e12
    assert train_tokens(replace(V3.pretrain, save_every=1)) == pytest.approx(14.8e12, rel=1e-5)
    assert 15_360 * 4096 == 1920 * 2**15 == 480 * 2**17 == 62_914_560
    assert train_tokens(replace(V3.pretrain, schedule=preset("laptop").pretrain.schedule)) == 238_260 * 62_914_560


@pytest.mark.parametrize(
    ("causal", "tflops", "share", "printed"), [(True, 386, 0.390, 38.94), (False, 433, 0.438, 43.73)]
)
def test_mfu_of_v3_from_its_tokens_a_day(causal: bool, tflops: float, share: float, printed: float) -> None:
    flops = train_flops_per_token(V3.model, 4096, mtp=False, causal=causal)
    mfu = fitted_mfu(272.8e9 * flops, 2048 * 24, HARDWARE["h800"])
    assert 272.8e9 / 86_400 / 2048 * flops / 1e12 == pytest.approx(tflops, abs=0.5)
    assert mfu == pytest.approx(share, abs=5e-4)
    assert 100 * mfu == pytest.approx(printed, abs=0.1)  # what the paper prints is a little lower


def test_mfu_with_and_without_mtp() -> None:
    without = train_flops_per_token(V3.model, 4096, mtp=False) / train_flops_per_token(V3.model, 4096)
    assert v3_mfu() == pytest.approx(0.407, abs=5e-4)
    assert v3_mfu() * without == pytest.approx(0.391, abs=5e-4)


def test_a_share_of_the_peak_is_known_where_a_run_has_reached_it() -> None:
    assert known_mfu(V3.model, HARDWARE["h800"]) == (v3_mfu(), "fitted to V3's own 2,664K GPU-hours")
    share, source = known_mfu(preset("laptop").model, HARDWARE["laptop"]) or (0, "")
    assert share == pytest.approx(59.5e9 / 140e9, rel=1e-3) and "laptop run" in source
    assert known_mfu(V3.model, HARDWARE["h200"]) is None


def test_whole_run_of_v3() -> None:
    assert 14.8e12 * train_flops_per_token(V3.model, 4096, mtp=False) == pytest.approx(3.71e24, rel=1e-3)


def test_v3_on_other_devices_takes_the_same_operations() -> None:
    h200, b200 = Devices(count=2048, hardware=HARDWARE["h200"]), Devices(count=1024, hardware=HARDWARE["b200"])
    for line, other in zip(cost_lines(V3, h200, 0.4), cost_lines(V3, b200, 0.4), strict=True):
        assert line.gpu_hours * 989.4 == pytest.approx(other.gpu_hours * 2250)
        assert line.note in ("", *(f"scaled from what was published ({at})" for at in ("V3 table 1", "R1 table 7")))


def test_hours_and_tokens_are_each_others_inverse() -> None:
    h200 = HARDWARE["h200"]
    tokens = affordable_tokens(15, 1e9, h200, 0.3)
    assert tokens == pytest.approx(15 * 3600 * 989.4e12 * 0.3 / 1e9)
    assert gpu_hours(tokens * 1e9, h200, 0.3) == pytest.approx(15)
    assert fitted_mfu(tokens * 1e9, 15, h200) == pytest.approx(0.3)


def test_longer_rows_cost_more_attention() -> None:
    config, devices = preset("moonlight"), parse_devices("8xH200")
    config = replace(config, model=replace(config.model, rope=V3.model.rope))
    line = context_extension(config, devices, 0.3)
    same_length = gpu_hours(line.tokens * train_flops_per_token(config.model, 4096), devices.hardware, 0.3)
    assert line.tokens == 2 * 62_914_560_000 and line.gpu_hours > 2 * same_length


def test_stages_of_the_laptop() -> None:
    config, laptop = preset("laptop"), parse_devices("laptop")
    lines = {line.name: line for line in cost_lines(config, laptop, 0.36)}
    assert list(lines) == ["pretraining", "fine-tuning", "RL rollouts", "RL verifier", "RL updates"]
    assert lines["RL verifier"].gpu_hours == 0 and "CPU-hours" in lines["RL verifier"].note
    g = config.grpo
    assert lines["RL updates"].tokens == g.steps * g.prompts * g.group * g.sampling.max_tokens
    assert all(line.included for line in lines.values())
    assert "fine-tuning" not in {line.name for line in cost_lines(replace(config, cold_start=False), laptop, 0.36)}


def test_a_reference_model_adds_its_forward_pass() -> None:
    config, devices = preset("qwen2.5-3b"), parse_devices("8xH200")
    free = replace(config, grpo=replace(config.grpo, objective=replace(config.grpo.objective, kl_beta=0.0)))
    with_reference, without = reinforcement(config, devices, 0.3)[-1], reinforcement(free, devices, 0.3)[-1]
    assert with_reference.gpu_hours == pytest.approx(without.gpu_hours * 4 / 3)


def test_rollouts_of_a_model_that_does_not_fit_are_left_out_and_said_so() -> None:
    sampling = reinforcement(preset("kimi_k2"), parse_devices("8xH100"), 0.3)[0]
    assert not sampling.included and "do not fit" in sampling.note
