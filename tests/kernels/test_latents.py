"""Packed latents against the vectors they stand for."""

import pytest
import torch

from fathom.kernels.latents import dequantize_latents, latent_bytes, quantize_latents


def test_a_token_of_deepseek_takes_656_bytes() -> None:
    assert latent_bytes(512, 64) == 656
    assert quantize_latents(torch.ones(2, 3, 576), rank=512).shape == (2, 3, 656)


def test_powers_of_two_come_back_as_they_were() -> None:
    latents = torch.tensor([[448.0, -224.0, 3.5, 0.0, 0.25, -3.0], [0.0, 0.0, 0.0, 0.0, 1e4, 2.0]])
    found = dequantize_latents(quantize_latents(latents, rank=4), rank=4, rope=2)
    assert torch.equal(found[0], latents[0])
    assert torch.equal(found[1], torch.tensor([0.0, 0.0, 0.0, 0.0, 9984.0, 2.0]))  # 1e4 in bfloat16


def test_errors_are_those_of_four_significant_bits() -> None:
    latents = torch.randn(50, 80, generator=torch.Generator().manual_seed(0)) * torch.logspace(-3, 3, 50).unsqueeze(1)
    found = dequantize_latents(quantize_latents(latents, rank=64), rank=64, rope=16)
    latent, key = latents.split((64, 16), dim=1)
    largest = latent.abs().amax(1, keepdim=True)
    # half of the last of three fraction bits, and below the normal numbers half of 2^-9 of 448 parts
    assert ((found[:, :64] - latent).abs() <= latent.abs() / 16 + largest / 448 * 2**-10).all()
    assert ((found[:, :64] - latent).norm() / latent.norm()) > 1e-3
    assert torch.equal(found[:, 64:], key.bfloat16().float())


def test_a_width_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="rank=6 cannot be packed"):
        quantize_latents(torch.ones(1, 8), rank=6)
