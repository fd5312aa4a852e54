"""Predicted memory against the allocations of the real training step, and against published sums."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from fathom.plan.count import main_parameters, mtp_parameters
from fathom.plan.hardware import HARDWARE
from fathom.plan.layout import Layout
from fathom.plan.memory import WORKSPACE, capacity, fix, memory
from fathom.plan.share import share_of
from fathom.presets import preset

GIB = 2**30
V3 = preset("v3").model
AS_V3 = Layout(  # V3 3.1-3.2
    shard=128, expert=64, pipeline=16, schedule="dualpipe", micro_batches=120, recompute="selective", precision="fp8"
)


@pytest.mark.parametrize(
    ("name", "changes", "rows", "seq_len", "moments", "moment"),
    [
        ("small", {"num_hidden_layers": 4}, 8, 4096, "bfloat16", "forward"),
        ("small", {"num_hidden_layers": 3, "num_nextn_predict_layers": 1}, 4, 4096, "float32", "forward"),
        ("llama-3.2-1b", {"num_hidden_layers": 4}, 2, 4096, "float32", "forward"),
        ("llama-3.2-1b", {"num_hidden_layers": 8, "vocab_size": 1024}, 1, 64, "float32", "backward"),
        ("qwen3-0.6b", {"num_hidden_layers": 3}, 4, 1024, "bfloat16", "forward"),
        ("moonlight", {"num_hidden_layers": 3}, 4, 4096, "bfloat16", "backward"),
        ("moonlight", {"num_hidden_layers": 5}, 1, 1024, "bfloat16", "backward"),
        ("v3", {"num_hidden_layers": 4}, 1, 4096, "float32", "backward"),
        ("v3", {"num_hidden_layers": 4, "num_nextn_predict_layers": 0}, 1, 1024, "bfloat16", "backward"),
    ],
)
def test_the_peak_is_that_of_the_real_step(
    name: str,
    changes: dict[str, int],
    rows: int,
    seq_len: int,
    moments: str,
    moment: str,
    play_step: Callable[..., Any],
) -> None:
    config = replace(preset(name).model, **changes)  # pyright: ignore[reportArgumentType]
    layout = Layout(micro_batch_rows=rows, optimizer="adamw" if moments == "float32" else "adamw_bf16")
    predicted, played = memory(config, layout, seq_len), play_step(config, rows, seq_len, moments)
    assert predicted.moment == moment
    assert predicted.total - WORKSPACE == pytest.approx(played.peak, rel=0.005)
    masters = 4 * (main_parameters(config) + mtp_parameters(config))
    assert masters + predicted.optimizer == pytest.approx(played.state, rel=0.001)


def test_twelve_bytes_a_parameter_shared_by_all() -> None:
    shared = Layout(shard=2048, expert=256, zero=3)
    needed = memory(replace(V3, num_nextn_predict_layers=0), shared, 4096)
    assert needed.weights + needed.gradients + needed.optimizer == pytest.approx(671.03e9 * 12 / 2048, rel=1e-3)


def test_v3_fits_into_its_own_devices() -> None:
    assert AS_V3.devices == 2048
    needed = memory(V3, AS_V3, 4096)
    assert needed.total < capacity(HARDWARE["h800"].memory_bytes)
    assert needed.cache == 0
    assert sum(needed.parts.values()) == needed.total
    alone = memory(V3, Layout(precision="fp8"), 4096)
    assert alone.total > 50 * HARDWARE["h800"].memory_bytes


def test_sharing_and_spreading_shrink_their_part_alone() -> None:
    moonlight = preset("moonlight").model
    plain, zero1, zero3 = (
        memory(moonlight, layout, 4096) for layout in (Layout(data=8), Layout(shard=8), Layout(shard=8, zero=3))
    )
    parameters = main_parameters(moonlight)
    assert plain.weights > zero1.weights > zero3.weights == pytest.approx(4 * parameters / 8, rel=1e-3)
    assert plain.gradients == zero1.gradients == pytest.approx(8 * zero3.gradients)
    assert zero1.optimizer == pytest.approx((4 + 4) * parameters / 8, rel=1e-3)
    spread = memory(moonlight, Layout(data=8, expert=8), 4096)
    share = share_of(moonlight, Layout(data=8, expert=8), 0)
    assert spread.gradients == 4 * (share.dense + share.routed)
    assert share.routed == 26 * 64 // 8 * 3 * 2048 * 1408


def test_a_fix_is_one_change_that_fits() -> None:
    small, room = preset("small").model, 24 * GIB
    assert fix(small, Layout(micro_batch_rows=4), 4096, room) is None
    found = fix(small, Layout(micro_batch_rows=8), 4096, room)
    assert found is not None
    assert found.change == "micro_batches=2, micro_batch_rows=4"
    assert found.memory.total <= capacity(room) < memory(small, Layout(micro_batch_rows=8), 4096).total


def test_a_fix_may_share_state_or_take_more_devices() -> None:
    moonlight, room = preset("moonlight").model, HARDWARE["h200"].memory_bytes
    shared = fix(moonlight, Layout(data=8), 4096, room)
    assert shared is not None
    assert shared.layout.devices == 8
    alone = fix(moonlight, Layout(), 4096, room)
    assert alone is not None
    assert alone.layout.devices > 1
    assert fix(V3, Layout(), 4096, 2 * GIB) is None
