"""Grouped-query attention: groups, bias, norms and cache."""

from dataclasses import replace

import torch

from fathom.config import AttentionConfig, ModelConfig, RopeConfig
from fathom.model import CacheSlots, LatentCache
from fathom.model.gqa import GQA
from fathom.model.rope import Rotation, rope_frequencies, rotation

GROUPED = AttentionConfig(
    kind="gqa", num_attention_heads=4, num_key_value_heads=2, head_dim=8, attention_bias=True, qk_norm=True
)
CONFIG = ModelConfig(hidden_size=24, attention=GROUPED)


def attention(config: ModelConfig) -> GQA:
    layer = GQA(config, layer=0)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in sorted(layer.named_parameters()):
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data = 1 + 0.2 * noise if "norm" in name else 0.3 * noise
    return layer


def turn(positions: torch.Tensor) -> Rotation:
    return rotation(rope_frequencies(RopeConfig(), 8), positions)


def states(batch: int, time: int) -> torch.Tensor:
    return torch.randn(batch, time, 24, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_groups_share_keys_and_values() -> None:
    """The same as multi-head attention in which every group's keys and values are repeated."""
    grouped = attention(CONFIG)
    full = GQA(replace(CONFIG, attention=replace(GROUPED, num_key_value_heads=4)), layer=0)
    weights = grouped.state_dict()
    for name in ("k_proj.weight", "k_proj.bias", "v_proj.weight", "v_proj.bias"):
        heads = weights[name].unflatten(0, (2, 8))
        weights[name] = heads.repeat_interleave(2, dim=0).flatten(0, 1)
    full.load_state_dict(weights)
    x, places = states(2, 6), turn(torch.arange(6).unsqueeze(0))
    torch.testing.assert_close(grouped(x, places), full(x, places), atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_token_by_token_is_all_at_once() -> None:
    layer, x, cache = attention(CONFIG), states(2, 7), LatentCache(CONFIG, 2, 7)
    whole = layer(x, turn(torch.arange(7).unsqueeze(0)))
    for place in range(7):
        here = torch.full((2, 1), place)
        slots = CacheSlots.at(cache, 0, here, place + 1, fresh=place == 0)
        out = layer(x[:, place : place + 1], turn(here), slots=slots)
        torch.testing.assert_close(out[:, 0], whole[:, place], atol=1e-5, rtol=1e-5)
    assert cache.layers[0].shape[-1] == 2 * 2 * 8


@torch.no_grad()
def test_norms_act_on_each_head_before_the_turn() -> None:
    layer, x = attention(CONFIG), states(1, 3)
    cache = LatentCache(CONFIG, 1, 3)
    positions = torch.arange(3).unsqueeze(0)
    layer(x, turn(positions), slots=CacheSlots.at(cache, 0, positions, 3, fresh=True))
    keys = cache.layers[0][..., :16].unflatten(-1, (2, 8))
    raw = (x @ layer.k_proj.weight.T + layer.k_proj.bias).unflatten(-1, (2, 8))
    normed = raw / raw.square().mean(-1, keepdim=True).sqrt() * layer.k_norm.weight
    torch.testing.assert_close(keys[:, 0], normed[:, 0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(keys.norm(dim=-1), normed.norm(dim=-1), atol=1e-4, rtol=1e-4)
