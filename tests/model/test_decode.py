"""A decoding step in fused pieces against the modules."""

from dataclasses import replace

import pytest
import torch

from fathom.config import AttentionConfig, ModelConfig, MoEConfig
from fathom.kernels import decode as pieces
from fathom.model import PagedCache, Transformer
from fathom.model import decode as fused
from fathom.model.linear import Linear, RMSNorm
from fathom.model.moe import Router

BASE = {"vocab_size": 96, "hidden_size": 48, "num_hidden_layers": 3, "intermediate_size": 80, "initializer_range": 0.2}
V3 = ModelConfig(
    **BASE,
    attention=AttentionConfig(
        num_attention_heads=3, q_lora_rank=24, kv_lora_rank=40, qk_nope_head_dim=20, qk_rope_head_dim=12, v_head_dim=18
    ),
    moe=MoEConfig(
        n_routed_experts=12,
        num_experts_per_tok=3,
        moe_intermediate_size=24,
        first_k_dense_replace=1,
        n_group=3,
        topk_group=2,
        routed_scaling_factor=2.5,
    ),
)
V2 = ModelConfig(
    **BASE,
    moe=MoEConfig(
        n_routed_experts=8, n_shared_experts=2, scoring_func="softmax", topk_method="greedy", norm_topk_prob=False
    ),
)
ALONE = ModelConfig(**BASE, moe=MoEConfig(n_routed_experts=8, n_shared_experts=0, n_group=4, topk_group=2))
QWEN2 = ModelConfig(
    **BASE,
    model_type="qwen2",
    num_nextn_predict_layers=0,
    attention=AttentionConfig(
        kind="gqa", num_attention_heads=6, num_key_value_heads=2, head_dim=8, attention_bias=True
    ),
    moe=MoEConfig(n_routed_experts=0),
)
QWEN3 = replace(QWEN2, model_type="qwen3", attention=replace(QWEN2.attention, attention_bias=False, qk_norm=True))
MIXED = ModelConfig(**BASE, attention=AttentionConfig(kind="gqa"), moe=MoEConfig(n_routed_experts=8))


def build(config: ModelConfig) -> Transformer:
    model, generator = Transformer(config), torch.Generator().manual_seed(1)
    model.initialise(generator)
    for module in model.modules():
        if isinstance(module, Router):
            module.selection_bias.normal_(0, 0.02, generator=generator)
        if isinstance(module, RMSNorm):
            module.weight.data.uniform_(0.5, 1.5, generator=generator)
        if isinstance(module, Linear) and module.bias is not None:
            module.bias.data.normal_(0, 0.2, generator=generator)
    return model.eval()


@pytest.mark.parametrize("together", [1, 2])
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize(
    "config", [V3, V2, ALONE, QWEN2, QWEN3, MIXED], ids=["V3", "V2", "alone", "qwen2", "qwen3", "mixed"]
)
def test_tokens_one_by_one_are_the_whole_row(config: ModelConfig, rows: int, together: int) -> None:
    model, length = build(config), 6
    tokens = torch.randint(0, config.vocab_size, (rows, length), generator=torch.Generator().manual_seed(2))
    cache, table = PagedCache(config, 3 * rows + 1, 2), torch.randperm(3 * rows).view(rows, 3).int() + 1
    turns, states = fused.rotations(model, length), []
    with torch.inference_mode():
        for first in range(0, length, together):
            place = torch.arange(first, first + together, dtype=torch.int32).repeat(rows)
            new = tokens[:, first : first + together].flatten()
            states.append(fused.fused_hidden(model, new, place, table, cache, turns).unflatten(0, (rows, together)))
        torch.testing.assert_close(torch.cat(states, 1), model(tokens), rtol=1e-4, atol=1e-5)


def test_idle_tokens_write_nothing() -> None:
    model = build(V3)
    cache, table = PagedCache(V3, 4, 2), torch.zeros(2, 3, dtype=torch.int32)
    place = torch.full((2,), -1, dtype=torch.int32)
    with torch.inference_mode():
        fused.fused_hidden(model, torch.tensor([1, 2]), place, table, cache, fused.rotations(model, 6))
    assert all(not layer.any() for layer in cache.layers)


def test_many_rows_take_torchs_products() -> None:
    config, rows = QWEN2, fused.CROWD
    model, tokens = build(config), torch.randint(0, 96, (rows, 2), generator=torch.Generator().manual_seed(2))
    table = torch.arange(1, rows + 1, dtype=torch.int32).unsqueeze(1)
    turns, states = fused.rotations(model, 2), list[list[torch.Tensor]]()
    with torch.inference_mode():
        for invariant in (False, True):
            cache = PagedCache(config, rows + 1, 2)
            places = (torch.full((rows,), place, dtype=torch.int32) for place in (0, 1))
            states.append(
                [
                    fused.fused_hidden(model, tokens[:, i], place, table, cache, turns, invariant)
                    for i, place in enumerate(places)
                ]
            )
        crowd, few = (torch.stack(each, 1) for each in states)
        torch.testing.assert_close(crowd, model(tokens), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(crowd, few, rtol=1e-4, atol=1e-5)
    assert [fused.is_crowd(n, False) for n in (rows - 1, rows)] == [False, True]


def test_pieces_are_chosen_by_the_device() -> None:
    assert all(hasattr(getattr(pieces, name), "__wrapped__") for name in ("norm_linear", "route", "add_experts_"))
