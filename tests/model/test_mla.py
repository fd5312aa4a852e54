"""Latent attention: the two forms, and what is cached."""

import pytest
import torch

from fathom.config import AttentionConfig, ModelConfig, RopeConfig
from fathom.model import CacheSlots, LatentCache
from fathom.model.mla import MLA
from fathom.model.rope import Rotation, rope_frequencies, rope_magnitude, rotation

SHAPE = {"num_attention_heads": 3, "num_key_value_heads": 3, "kv_lora_rank": 20, "qk_nope_head_dim": 10}
YARN = RopeConfig(scaling="yarn", factor=4.0, original_max_position_embeddings=64, mscale=1.0, mscale_all_dim=0.707)
CONFIGS = [
    ModelConfig(hidden_size=24, attention=AttentionConfig(**SHAPE, qk_rope_head_dim=6, v_head_dim=7)),
    ModelConfig(hidden_size=24, attention=AttentionConfig(**SHAPE, q_lora_rank=12, v_head_dim=30), rope=YARN),
]


def attention(config: ModelConfig) -> MLA:
    layer = MLA(config, layer=0)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in sorted(layer.named_parameters()):
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data = 1 + 0.2 * noise if "norm" in name else 0.3 * noise
    return layer


def turn(config: ModelConfig, positions: torch.Tensor) -> Rotation:
    frequencies = rope_frequencies(config.rope, config.attention.qk_rope_head_dim)
    return rotation(frequencies, positions, rope_magnitude(config.rope))


def states(batch: int, time: int) -> torch.Tensor:
    return torch.randn(batch, time, 24, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
@pytest.mark.parametrize("config", CONFIGS, ids=["q", "q_lora_yarn"])
def test_absorbed_is_expanded(config: ModelConfig) -> None:
    layer, x, positions = attention(config), states(2, 9), torch.arange(9).unsqueeze(0)
    expanded = layer(x, turn(config, positions))
    slots = CacheSlots.at(LatentCache(config, 2, 9), 0, positions.expand(2, -1), 9, fresh=False)
    torch.testing.assert_close(layer(x, turn(config, positions), slots=slots), expanded, atol=1e-5, rtol=1e-5)
    assert expanded.std() > 0.1


@torch.no_grad()
@pytest.mark.parametrize("config", CONFIGS, ids=["q", "q_lora_yarn"])
def test_token_by_token_is_all_at_once(config: ModelConfig) -> None:
    layer, x = attention(config), states(2, 7)
    whole = layer(x, turn(config, torch.arange(7).unsqueeze(0)))
    cache = LatentCache(config, 2, 7)
    for place in range(7):
        here = torch.full((2, 1), place)
        slots = CacheSlots.at(cache, 0, here, place + 1, fresh=place == 0)
        out = layer(x[:, place : place + 1], turn(config, here), slots=slots)
        torch.testing.assert_close(out[:, 0], whole[:, place], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_attention_by_its_equations() -> None:
    """V2 eq. 9-19 for one query, head by head."""
    config = CONFIGS[1]
    a, layer, x = config.attention, attention(CONFIGS[1]), states(1, 5)
    positions = torch.arange(5).unsqueeze(0)
    c_q = layer.q_a_norm(layer.q_a_proj(x[0, -1]))
    c_kv = layer.kv_a_norm(layer.kv_a_proj(x[0])[:, : a.kv_lora_rank])
    angles = positions[0].unsqueeze(1) * rope_frequencies(config.rope, a.qk_rope_head_dim)

    def turned(rows: torch.Tensor, angle: torch.Tensor) -> torch.Tensor:
        """Neighbouring pairs as complex numbers."""
        pairs = torch.view_as_complex(rows.unflatten(-1, (-1, 2)).contiguous())
        return torch.view_as_real(
            pairs * torch.polar(torch.full_like(angle, rope_magnitude(config.rope)), angle)
        ).flatten(-2)

    k_rope = turned(layer.kv_a_proj(x[0])[:, a.kv_lora_rank :], angles)
    outputs = []
    for head in range(a.num_attention_heads):
        q = layer.q_b_proj(c_q).view(a.num_attention_heads, -1)[head]
        kv = layer.kv_b_proj(c_kv).view(5, a.num_attention_heads, -1)[:, head]
        k, v = kv.split((a.qk_nope_head_dim, a.v_head_dim), dim=-1)
        q_rope = turned(q[a.qk_nope_head_dim :], angles[-1])
        scores = (k @ q[: a.qk_nope_head_dim] + k_rope @ q_rope) * layer.scale
        outputs.append(scores.softmax(0) @ v)
    expected = layer.o_proj(torch.cat(outputs))
    torch.testing.assert_close(layer(x, turn(config, positions))[0, -1], expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_cached_are_the_normalised_latent_and_the_turned_key() -> None:
    config = CONFIGS[0]
    layer, x, positions = attention(config), states(1, 4), torch.arange(4).unsqueeze(0)
    cache = LatentCache(config, 1, 4)
    layer(x, turn(config, positions), slots=CacheSlots.at(cache, 0, positions, 4, fresh=True))
    latent, key = cache.layers[0].split((20, 6), dim=-1)
    torch.testing.assert_close(latent, layer.kv_a_norm(layer.kv_a_proj(x)[..., :20]))
    raw = layer.kv_a_proj(x)[..., 20:]
    torch.testing.assert_close(key.norm(dim=-1), raw.norm(dim=-1))  # turned, not normalised
    torch.testing.assert_close(key[0, 0], raw[0, 0])  # place 0 turns nothing
    assert cache.layers[0].shape[-1] == config.attention.cache_width == 26


def test_gradients_reach_every_weight() -> None:
    config = CONFIGS[1]
    layer = attention(config)
    layer(states(2, 5), turn(config, torch.arange(5).unsqueeze(0))).square().sum().backward()
    assert all((parameter.grad != 0).any() for parameter in layer.parameters())
