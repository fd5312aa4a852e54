"""Ratios of two policies from their log-probabilities, with exponents that cannot overflow."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

MAX_LOG_RATIO = 20.0  # exponents are clamped here: e^20 = 4.9e8 stays finite in every sum


def bounded_exp(x: Float[Tensor, "*N"]) -> Float[Tensor, "*N"]:
    """e^x, with x held within +-20; no gradient beyond."""
    return x.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()


def mean_per_answer(x: Float[Tensor, "N T"], mask: Bool[Tensor, "N T"]) -> Float[Tensor, "N 1"]:
    """The mean over every row's marked tokens; 0 in a row without any."""
    return x.where(mask, 0.0).sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1)


def total_per_answer(x: Float[Tensor, "N T"], mask: Bool[Tensor, "N T"]) -> Float[Tensor, "N 1"]:
    """The sum over every row's marked tokens."""
    return torch.where(mask, x, 0.0).sum(1, keepdim=True)
