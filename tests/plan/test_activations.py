"""What a layer keeps, counted by formula and in the real model."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

from fathom.config import ModelConfig
from fathom.kernels import grouped
from fathom.plan.activations import FP8_INPUT, Widths, block_bytes, routed_bytes
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
    router = config.moe.n_routed_experts * config.hidden_size if config.is_moe_layer(1) else 0
    copies = 2 * (block_parameters(config, 1, active=False) - router)  # of the router none is kept
    assert more == pytest.approx(ROWS * SEQ_LEN * block_bytes(deeper, 2, "bf16", "none") + copies, rel=0.005)


def test_a_dense_layer_by_hand() -> None:
    config = preset("llama-3.2-1b").model
    d, i, q, k = 2048, 8192, 2048, 512
    # both norms' inputs and outputs in BF16, q, k, v, the result, gate, up and their product
    by_hand = 2 * (2 * d + 4) + 2 * 2 * d + 2 * (q + 2 * k + q) + 4 * 32 + 2 * 3 * i
    assert block_bytes(config, 0, "bf16", "none") == by_hand


def test_spread_experts_keep_what_their_steps_read() -> None:
    tokens, k, d, e, wide = 64, 3, 32, 8, 48
    config = preset("small").model
    moe = replace(config.moe, n_routed_experts=e, moe_intermediate_size=wide, n_group=1, topk_group=1)
    config = replace(config, hidden_size=d, moe=moe)
    saved: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        saved[storage._cdata] = storage.nbytes()
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor)
    with FakeTensorMode():
        x = torch.empty(tokens, d, dtype=torch.bfloat16, requires_grad=True)
        weights, gate_up = torch.empty(tokens, k, requires_grad=True), torch.empty(e, 2 * wide, d, requires_grad=True)
        down, load = torch.empty(e, d, wide, requires_grad=True), torch.empty(e, dtype=torch.int64)
        order = torch.empty(tokens * k, dtype=torch.int64)
        with hooks, torch.autocast("cpu", torch.bfloat16):
            grouped._grouped_mm_swiglu(x, order, order // k, load, weights, gate_up, down)
    of_weights = 2 * 3 * e * d * wide + 4 * e  # copies, and where groups end
    assert sum(saved.values()) - of_weights == tokens * k * routed_bytes(config, Widths.of("bf16"), in_steps=True)
    together, apart = (block_bytes(config, 2, "bf16", "none", spread) for spread in (False, True))
    assert apart > together
    assert block_bytes(config, 2, "fp8", "none", spread=True) == block_bytes(config, 2, "fp8", "none")


def test_recomputation_keeps_less() -> None:
    v3: ModelConfig = preset("v3").model
    whole, selective, full = (block_bytes(v3, 10, "fp8", r) for r in ("none", "selective", "full"))  # pyright: ignore
    assert full == 2 * 7168
    assert full < selective < 0.5 * whole  # the experts keep the same: their activation is made anew always


def test_an_fp8_input_is_a_code_and_its_share_of_a_scale() -> None:
    assert Widths.of("fp8").inputs == FP8_INPUT == pytest.approx(1.03125)
    assert Widths.of("bf16").copies(3) == 2  # one tensor serves all readers
    assert Widths.of("fp8").copies(3) == 3 * FP8_INPUT
