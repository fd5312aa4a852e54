"""Ceilings of V3 on eight H200 by hand, and the economics that DeepSeek published."""

import pytest

from fathom.plan.cache import cache_bytes
from fathom.plan.hardware import HARDWARE, parse_devices
from fathom.plan.serving import (
    DEEPSEEK_DAY,
    Launch,
    Server,
    exchange_seconds,
    expert_union,
    relative_reads,
    serving_dtype,
    tokens_per_step,
)
from fathom.presets import preset

V3 = preset("v3").model
NODE = Server(model=V3, devices=parse_devices("8xH200"), dtype="fp8")


@pytest.mark.parametrize(("tokens", "union"), [(1, 1.0), (2, 1.97), (8, 7.2), (32, 20.4), (128, 31.5), (10_000, 32.0)])
def test_experts_that_a_step_meets(tokens: int, union: float) -> None:
    assert expert_union(V3, tokens) == pytest.approx(union, abs=0.06)


def test_a_dense_model_meets_no_experts() -> None:
    assert expert_union(preset("qwen3-8b").model, 8) == 0


def test_bytes_of_a_step() -> None:
    assert NODE.step_bytes(1, 0) == 36_625_618_432  # every active weight but the input embedding, a byte each
    assert NODE.step_bytes(2, 0) - NODE.step_bytes(1, 0) == pytest.approx(20.43e9 * (1 - 8 / 256), rel=1e-3)
    assert NODE.step_bytes(4, 1000) - NODE.step_bytes(4, 0) == 4 * 1000 * 70_272


def test_batch_1_is_bound_by_bandwidth() -> None:
    assert NODE.tokens_per_s(1, 0) == pytest.approx(1048, abs=1)
    one = Server(model=V3, devices=parse_devices("h200"))
    assert one.tokens_per_s(1, 0) == pytest.approx(131, abs=0.1)


def test_a_huge_batch_is_bound_by_arithmetic() -> None:
    assert NODE.tokens_per_s(10**7, 0) / 8 == pytest.approx(27_000, rel=0.01)


def test_attention_alone_bounds_long_contexts() -> None:
    h800 = Server(model=V3, devices=parse_devices("h800"))
    products, whole = h800.step_seconds(10**6, 0), h800.step_seconds(10**6, 8000)
    assert 10**6 / (whole - products) == pytest.approx(4.9e3 * 989.4 / 660, rel=0.01)  # 4.9k tokens/s at 660 TFLOP/s


@pytest.mark.parametrize(
    ("rows", "speedups"),
    [(1, (1.170, 1.199, 1.183)), (8, (1.083, 1.139, 1.185)), (32, (1.368, 1.736, 2.082)), (128, (1.815, 2.518, 3.112))],
)
def test_speedup_by_one_two_and_three_drafts(rows: int, speedups: tuple[float, ...]) -> None:
    found = [NODE.mtp_speedup(rows, 0, 0.85, drafts, draft_bytes=1.5e9) for drafts in (1, 2, 3)]
    assert found == pytest.approx(speedups, abs=6e-4)


def test_a_draft_of_v3_reads_one_layer_and_the_head() -> None:
    assert NODE.draft_bytes(1) == 1_614_779_648
    assert 1 < NODE.mtp_speedup(1, 4096, 0.85) < NODE.mtp_speedup(64, 4096, 0.85) < 1.85


def test_acceptance_may_differ_by_position() -> None:
    assert tokens_per_step([0.9, 0.5, 0.2]) == pytest.approx(1 + 0.9 + 0.45 + 0.09)
    assert tokens_per_step([]) == 1
    assert NODE.mtp_speedup(8, 0, [0.85, 0.85, 0.1], 2) == pytest.approx(NODE.mtp_speedup(8, 0, 0.85, 2))
    assert NODE.mtp_speedup(8, 0, [0.85, 0.2], 2) < NODE.mtp_speedup(8, 0, [0.85, 0.3], 2)


def test_where_launches_take_the_time_checking_is_free_and_drafting_is_not() -> None:
    launch = Launch(step_s=10.0, draft_s=2.5)
    assert NODE.mtp_speedup(1, 0, 0.8, 1, launch=launch) == pytest.approx(1.8 / 1.25, rel=1e-2)
    assert NODE.mtp_speedup(1, 0, 0.8, 2, launch=launch) == pytest.approx(2.44 / 1.5, rel=1e-2)
    plain, checking = NODE.step_seconds(8, 0) + 0.01, NODE.step_seconds(8, 0, 3) + 0.01
    drafting = 2 * (NODE.draft_seconds(8) + 0.002)
    found = NODE.mtp_speedup(8, 0, [0.9, 0.5], 2, launch=Launch(step_s=0.01, draft_s=0.002))
    assert found == pytest.approx(2.35 * plain / (checking + drafting))


def test_what_a_step_with_drafts_reads_is_counted_in_weights() -> None:
    for rows in (1, 32):
        plain, step = NODE.step_bytes(rows, 0), NODE.step_bytes(rows, 0, 3) + 2 * NODE.draft_bytes(rows)
        assert relative_reads(V3, rows, 2) == pytest.approx(step / plain)
        assert relative_reads(V3, rows, 0) == 1


def test_how_many_sequences_fit() -> None:
    room = 0.9 * 8 * 143_771 * 2**20 - NODE.weight_bytes
    assert NODE.sequences(4096) == int(room / (4096 * 70_272)) == 1432
    assert Server(model=V3, devices=parse_devices("8xH200"), cache="fp8").sequences(4096) == int(
        room / (4096 * cache_bytes(V3, "fp8"))
    )
    assert Server(model=V3, devices=parse_devices("8xH100")).sequences(4096) == 0  # 671 GB of weights


def test_price_of_a_million_tokens() -> None:
    assert NODE.dollars_per_million(1000) == pytest.approx(8 * 3.00 / 3.6)


def test_weights_are_as_narrow_as_the_device_multiplies() -> None:
    assert [serving_dtype(HARDWARE[name]) for name in ("h200", "a100", "laptop")] == ["fp8", "bfloat16", "float32"]


def test_a_laptop_reads_its_weights_in_fp32() -> None:
    laptop = Server(model=preset("laptop").model, devices=parse_devices("laptop"), dtype="float32")
    assert laptop.tokens_per_s(1, 0) == pytest.approx(40e9 / laptop.step_bytes(1, 0))
    assert laptop.prefill_tokens_per_s(128) > laptop.tokens_per_s(1, 128)


def test_exchange_bounds_a_step_of_v3() -> None:
    slow = exchange_seconds(V3, rows=32, bandwidth=50e9, width=7000)  # the paper rounds 7,168 to 7K
    assert slow * 1e3 == pytest.approx(14.76, abs=0.005) and round(1 / slow) == 68  # printed 67
    assert 1 / exchange_seconds(V3, rows=32, bandwidth=900e9, width=7000) == pytest.approx(1200, rel=0.02)


def test_a_day_of_deepseeks_service() -> None:
    day = DEEPSEEK_DAY
    assert day.cost == 87_072
    assert day.revenue == pytest.approx(562_100) and day.revenue == pytest.approx(562_027, rel=2e-4)
    assert day.margin == pytest.approx(5.455, abs=1e-3)
    assert (round(day.prefill_nodes, 1), round(day.decode_nodes, 1)) == (95.5, 131.4)
    assert day.prefill_nodes + day.decode_nodes == pytest.approx(226.9, abs=0.05)
