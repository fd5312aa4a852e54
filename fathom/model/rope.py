"""Rotary position embedding, plain or stretched by YaRN (V2 3.1.4, V3 4.3) or Llama 3's rule."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fathom.config import RopeConfig


class Rotation(NamedTuple):
    """Every angle as cos + i sin and in its parts, (1 or B, T, 1, rope_dim / 2): one for all heads."""

    unit: Tensor  # complex64
    cos: Tensor
    sin: Tensor


def rope_frequencies(config: RopeConfig, rope_dim: int) -> Float[Tensor, " {rope_dim}//2"]:
    """Radians per position for each pair of dims, computed on the CPU: equal bits on every device."""
    plain = config.theta ** -(torch.arange(0, rope_dim, 2, dtype=torch.float32, device="cpu") / rope_dim)
    match config.scaling:
        case "none":
            return plain
        case "yarn":
            return _yarn(plain, config, rope_dim)
        case "llama3":
            return _llama3(plain, config)


def _yarn(plain: Tensor, config: RopeConfig, rope_dim: int) -> Tensor:
    """Divide slow frequencies by the factor, keep fast ones, and ramp between."""

    def index_of(rotations: float) -> float:
        """The frequency index that turns `rotations` times within the original length."""
        turns = config.original_max_position_embeddings / (2 * math.pi * rotations)
        return rope_dim * math.log(turns) / (2 * math.log(config.theta))

    low = max(math.floor(index_of(config.beta_fast)), 0)
    high = min(math.ceil(index_of(config.beta_slow)), rope_dim - 1)
    width = high - low or 0.001  # equal ends make a step
    ramp = ((torch.arange(rope_dim // 2, dtype=torch.float32, device="cpu") - low) / width).clamp(0, 1)
    return plain / config.factor * ramp + plain * (1 - ramp)


def _llama3(plain: Tensor, config: RopeConfig) -> Tensor:
    """Divide wavelengths beyond the original context by the factor, and blend those near it."""
    wavelengths_in_context = config.original_max_position_embeddings * plain / (2 * math.pi)
    span = config.high_freq_factor - config.low_freq_factor
    kept = ((wavelengths_in_context - config.low_freq_factor) / span).clamp(0, 1)
    return plain * kept + plain / config.factor * (1 - kept)


def yarn_magnitude(factor: float, mscale: float) -> float:
    """m = 0.1 mscale ln(factor) + 1 (V3's constant; V2's paper prints 0.0707)."""
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0


def rope_magnitude(config: RopeConfig) -> float:
    """What cos and sin are multiplied by: 1 for V3, where both mscales are equal."""
    if config.scaling != "yarn":
        return 1.0
    if not (config.mscale and config.mscale_all_dim):
        return yarn_magnitude(config.factor, 1.0)
    return yarn_magnitude(config.factor, config.mscale) / yarn_magnitude(config.factor, config.mscale_all_dim)


def softmax_scale(config: RopeConfig, qk_head_dim: int) -> float:
    """1/sqrt(d), times m squared where YaRN scales all dims (0.1352338 for V3 at factor 40)."""
    scale = qk_head_dim**-0.5
    if config.scaling == "yarn" and config.mscale_all_dim:
        scale *= yarn_magnitude(config.factor, config.mscale_all_dim) ** 2
    return scale


def rotation(frequencies: Float[Tensor, " F"], positions: Int[Tensor, "B T"], magnitude: float = 1.0) -> Rotation:
    """The rotation of every position; `magnitude` lengthens what it turns."""
    angles = (positions.unsqueeze(-1).float() * frequencies).unsqueeze(2)  # (B, T, 1, F)
    unit = torch.polar(torch.full_like(angles, magnitude), angles)
    return Rotation(unit, unit.real, unit.imag)


def rotate(x: Float[Tensor, "B T H F2"], turn: Rotation, interleaved: bool) -> Float[Tensor, "B T H F2"]:
    """Turn pairs of dims: neighbours (DeepSeek), or those that lie half the width apart (Llama, Qwen)."""
    if interleaved:
        return _rotate_neighbours(x, turn)
    first, second = x.chunk(2, dim=-1)
    cos, sin = turn.cos.to(x.dtype), turn.sin.to(x.dtype)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def _rotate_neighbours(x: Tensor, turn: Rotation) -> Tensor:
    """Neighbours are the parts of a complex number, and one product turns it: float32 inside, whatever comes in."""
    batch, time, head, _ = x.stride()
    if x.storage_offset() % 2 or batch % 2 or time % 2 or head % 2:  # pairs must begin at even places in memory
        x = x.clone(memory_format=torch.contiguous_format)
    numbers = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(numbers * turn.unit).flatten(-2).to(x.dtype)
