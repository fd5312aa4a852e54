"""What a layer keeps, counted by formula and in the real model."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from fathom.config import ModelConfig
from fathom.plan.activations import FP8_INPUT, Widths, block_bytes
from fathom.plan.count import block_parameters
from fathom.presets import preset

ROWS, SEQ_LEN = 2, 256


@pytest.mark.parametrize("name", ["laptop", "v2_lite", "v3", "llama-3.2-1b", "qwen3-0.6b"])
def test_one_more_layer_keeps_that_much_more(name: str, play_step: Callable[..., Any]) -> None:
    config = preset(name).model
    moe = replace(config.moe, first_k_dense_replace=min(1, config.moe.first_k_dense_replace))
    config = replace(config, num_nextn_predict_layers=0, num_hidden_layers=2, moe=moe)
    deeper = replace(config, num_hidden_layers=3)
    more = play_step(deeper, ROWS, SEQ_LEN).kept - play_step(config, ROWS, SEQ_LEN).kept
    copies = 2 * block_parameters(config, 1, active=False)
    assert more == pytest.approx(ROWS * SEQ_LEN * block_bytes(deeper, 2, "bf16", "none") + copies, rel=0.005)


def test_a_dense_layer_by_hand() -> None:
    config = preset("llama-3.2-1b").model
    d, i, q, k = 2048, 8192, 2048, 512
    # both norms' float32 inputs, four BF16 copies of their outputs, q, k, v, the result, gate, up and two products
    by_hand = 2 * (4 * d + 4) + 4 * 2 * d + 2 * (q + 2 * k + q) + 4 * 32 + 2 * 4 * i
    assert block_bytes(config, 0, "bf16", "none") == by_hand


def test_recomputation_keeps_less() -> None:
    v3: ModelConfig = preset("v3").model
    whole, selective, full = (block_bytes(v3, 10, "fp8", r) for r in ("none", "selective", "full"))  # pyright: ignore
    assert full == 2 * 7168
    assert full < selective < 0.4 * whole


def test_an_fp8_input_is_a_code_and_its_share_of_a_scale() -> None:
    assert Widths.of("fp8").inputs == FP8_INPUT == pytest.approx(1.03125)
    assert Widths.of("bf16", mtp=True).copies(3) == 2  # one tensor serves all readers
    assert Widths.of("bf16").copies(3) == 6
