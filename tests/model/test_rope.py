"""Rotary positions: published constants, and what a rotation must keep."""

import math

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from fathom.config import RopeConfig
from fathom.model.rope import rope_frequencies, rope_magnitude, rotate, rotation, softmax_scale

V3 = RopeConfig(scaling="yarn", factor=40.0, mscale=1.0, mscale_all_dim=1.0)
V2_LITE = RopeConfig(scaling="yarn", factor=40.0, mscale=0.707, mscale_all_dim=0.707)


def test_plain_frequencies() -> None:
    expected = torch.tensor([1.0, 10_000**-0.25, 10_000**-0.5, 10_000**-0.75])
    torch.testing.assert_close(rope_frequencies(RopeConfig(), 8), expected)


def test_yarn_of_v3_keeps_ten_frequencies_and_slows_those_from_twenty_three() -> None:
    ratio = rope_frequencies(V3, 64) / rope_frequencies(RopeConfig(), 64)
    torch.testing.assert_close(ratio[:11], torch.ones(11))
    torch.testing.assert_close(ratio[23:], torch.full((9,), 1 / 40))
    ramp = torch.arange(1, 13) / 13
    torch.testing.assert_close(ratio[11:23], ramp / 40 + 1 - ramp)


@pytest.mark.parametrize("rope_dim", [16, 64, 128])
@pytest.mark.parametrize(
    "config",
    [
        V3,
        RopeConfig(scaling="yarn", factor=40.0, mscale=1.0, mscale_all_dim=0.707),
        RopeConfig(scaling="yarn", factor=4.0, original_max_position_embeddings=128),
        RopeConfig(scaling="yarn", factor=32.0, theta=50_000.0, beta_fast=1.0, beta_slow=1.0, mscale_all_dim=1.0),
    ],
    ids=["v3", "unequal mscales", "short", "equal betas"],
)
def test_yarn_is_that_of_transformers(config: RopeConfig, rope_dim: int) -> None:
    magnitudes = {"mscale": config.mscale, "mscale_all_dim": config.mscale_all_dim} if config.mscale_all_dim else {}
    theirs = LlamaConfig(
        head_dim=rope_dim,
        max_position_embeddings=int(config.original_max_position_embeddings * config.factor),
        rope_parameters={
            "rope_type": "yarn",
            "rope_theta": config.theta,
            "factor": config.factor,
            "original_max_position_embeddings": config.original_max_position_embeddings,
            "beta_fast": config.beta_fast,
            "beta_slow": config.beta_slow,
            **magnitudes,
        },
    )
    frequencies, magnitude = ROPE_INIT_FUNCTIONS["yarn"](theirs, torch.device("cpu"))
    torch.testing.assert_close(rope_frequencies(config, rope_dim), frequencies, rtol=1e-6, atol=0)
    assert rope_magnitude(config) == pytest.approx(magnitude, rel=1e-12)
    assert not torch.equal(frequencies, rope_frequencies(RopeConfig(theta=config.theta), rope_dim))


@pytest.mark.parametrize(
    ("config", "scale"), [(V3, 0.1352338), (V2_LITE, 0.1147214), (RopeConfig(), 0.0721688)], ids=["v3", "v2", "plain"]
)
def test_softmax_scale_of_192_dims(config: RopeConfig, scale: float) -> None:
    assert softmax_scale(config, 192) == pytest.approx(scale, abs=5e-8)
    assert rope_magnitude(config) == 1.0


def test_magnitude_where_the_mscales_differ() -> None:
    unequal = RopeConfig(scaling="yarn", factor=40.0, mscale=1.0, mscale_all_dim=0.707)
    assert rope_magnitude(unequal) == pytest.approx(1.3688879 / 1.2608038, abs=1e-6)
    alone = RopeConfig(scaling="yarn", factor=40.0)
    assert rope_magnitude(alone) == pytest.approx(1.3688879, abs=1e-6)
    assert softmax_scale(alone, 192) == pytest.approx(192**-0.5)


def test_llama3_divides_long_waves_and_keeps_short_ones() -> None:
    config = RopeConfig(theta=5e5, scaling="llama3", factor=8.0, original_max_position_embeddings=8192)
    plain = rope_frequencies(RopeConfig(theta=5e5), 128)
    ratio = rope_frequencies(config, 128) / plain
    turns = 8192 * plain / (2 * math.pi)  # within the trained context
    torch.testing.assert_close(ratio[turns > 4], torch.ones(int((turns > 4).sum())))
    torch.testing.assert_close(ratio[turns < 1], torch.full((int((turns < 1).sum()),), 1 / 8))
    between = (turns > 1) & (turns < 4)
    assert between.any()
    kept = (turns[between] - 1) / 3
    torch.testing.assert_close(ratio[between], kept + (1 - kept) / 8)


@pytest.mark.parametrize("interleaved", [True, False])
def test_products_depend_on_the_distance_only(interleaved: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 1, 1, 3, 8, generator=generator)
    frequencies = rope_frequencies(RopeConfig(), 8)

    def product(query: int, key: int) -> torch.Tensor:
        turned = [
            rotate(x, rotation(frequencies, torch.tensor([[place]])), interleaved)
            for x, place in ((q, query), (k, key))
        ]
        return (turned[0] * turned[1]).sum(-1)

    torch.testing.assert_close(product(9, 4), product(105, 100), atol=1e-4, rtol=1e-4)
    assert (product(9, 4) - product(9, 5)).abs().max() > 1e-2
    torch.testing.assert_close(product(7, 7), (q * k).sum(-1))


def test_pairs_are_neighbours_or_halves() -> None:
    quarter = rotation(torch.tensor([math.pi / 2, 0.0]), torch.tensor([[1]]))  # turns the first pair by 90 degrees
    x = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 1, 1, 4)
    # (1, 2) -> (-2, 1), and (1, 3) -> (-3, 1)
    expected = {True: [-2.0, 1.0, 3.0, 4.0], False: [-3.0, 2.0, 1.0, 4.0]}
    for interleaved, values in expected.items():
        torch.testing.assert_close(rotate(x, quarter, interleaved).flatten(), torch.tensor(values))


def test_neighbours_may_lie_anywhere_in_memory() -> None:
    turn = rotation(rope_frequencies(RopeConfig(), 4), torch.arange(3).unsqueeze(0))
    wide = torch.randn(1, 3, 2, 9, generator=torch.Generator().manual_seed(0))
    odd = wide.flatten()[1:25].view(1, 3, 2, 4)
    for part in (wide[..., 4:8], wide[..., 3:7], wide.transpose(1, 2).contiguous().transpose(1, 2)[..., 1:5], odd):
        torch.testing.assert_close(
            rotate(part, turn, True), rotate(part.clone(memory_format=torch.contiguous_format), turn, True)
        )
    halves = rotate(wide[..., [0, 2, 1, 3]], turn, False)  # the same pairs, told apart by halves
    torch.testing.assert_close(rotate(wide[..., :4], turn, True), halves[..., [0, 2, 1, 3]])
    assert rotate(wide[..., :4].bfloat16(), turn, True).dtype == torch.bfloat16
