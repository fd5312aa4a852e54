"""SwiGLU times gate weight in one pass each way (twins of `fathom.kernels.activation`)."""

from typing import Any

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

WIDE = 1024  # columns of one program


def weighted_swiglu(
    hidden: Float[Tensor, "P M2"], row_weight: Float[Tensor, " P"] | None = None
) -> Float[Tensor, "P M"]:
    """Twin of the definition of the same name; only hidden and the row weights are kept for the backward pass."""
    return _WeightedSwiGLU.apply(hidden, row_weight)  # pyright: ignore[reportReturnType]


class _WeightedSwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, row_weight: Tensor | None) -> Tensor:
        ctx.save_for_backward(hidden, row_weight)
        return _weighted_swiglu(hidden, row_weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        hidden, row_weight = ctx.saved_tensors
        _, of_weight, of_hidden = through_swiglu(hidden, grads[0], row_weight)
        return of_hidden.to(hidden.dtype), None if row_weight is None else of_weight.to(row_weight.dtype)


def _weighted_swiglu(hidden: Tensor, row_weight: Tensor | None) -> Tensor:
    hidden = hidden.contiguous()
    rows, width = hidden.shape[0], hidden.shape[1] // 2
    out = hidden.new_empty(rows, width)
    if out.numel():
        block = min(triton.next_power_of_2(width), WIDE)
        _forward[(rows, triton.cdiv(width, block))](
            hidden, hidden if row_weight is None else row_weight, out, width,
            WEIGHTED=row_weight is not None, BLOCK=block, num_warps=_warps(block),
        )  # fmt: skip
    return out


def through_swiglu(
    hidden: Float[Tensor, "P M2"],
    gradient: Float[Tensor, "P M"],
    row_weight: Float[Tensor, " P"] | None = None,
    scales: Float[Tensor, "P S"] | None = None,
) -> tuple[Float[Tensor, "P M"], Float[Tensor, " P"], Float[Tensor, "P M2"]]:
    """Twin of the definition of the same name."""
    hidden = hidden if hidden.stride(1) == 1 else hidden.contiguous()
    gradient = gradient.contiguous()
    rows, width = gradient.shape
    activation, of_hidden = torch.empty_like(gradient), gradient.new_empty(rows, 2 * width)
    of_weight = torch.zeros(rows, device=gradient.device)
    if gradient.numel():
        block = min(triton.next_power_of_2(width), WIDE)
        _backward[(rows,)](
            hidden, hidden if scales is None else scales, gradient if row_weight is None else row_weight,
            gradient, activation, of_weight, of_hidden,
            width, hidden.stride(0), 0 if scales is None else scales.stride(0),
            0 if scales is None else scales.stride(1),
            WEIGHTED=row_weight is not None, CODES=scales is not None, BLOCK=block, num_warps=_warps(block),
        )  # fmt: skip
    return activation, of_weight, of_hidden


def _warps(block: int) -> int:
    return min(max(block // 256, 1), 8)


@triton.jit
def _forward(hidden, row_weight, out, width, WEIGHTED: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    gate = tl.load(hidden + row * 2 * width + column, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(hidden + row * 2 * width + width + column, mask=inside, other=0.0).to(tl.float32)
    value = gate / (1 + tl.exp(-gate)) * up
    if WEIGHTED:
        value *= tl.load(row_weight + row).to(tl.float32)
    tl.store(out + row * width + column, value, mask=inside)


@triton.jit
def _backward(
    hidden, scales, row_weight, gradient, activation, of_weight, of_hidden, width, stride, scale_row, scale_column,
    WEIGHTED: tl.constexpr, CODES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    share = 1.0
    if WEIGHTED:
        share = tl.load(row_weight + row).to(tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    for start in tl.range(0, width, BLOCK):
        column = start + tl.arange(0, BLOCK)
        inside = column < width
        gate = tl.load(hidden + row * stride + column, mask=inside, other=0.0).to(tl.float32)
        up = tl.load(hidden + row * stride + width + column, mask=inside, other=0.0).to(tl.float32)
        if CODES:
            of_row = scales + row * scale_row
            gate *= tl.load(of_row + column // 128 * scale_column, mask=inside, other=0.0)
            up *= tl.load(of_row + (column + width) // 128 * scale_column, mask=inside, other=0.0)
        pull = tl.load(gradient + row * width + column, mask=inside, other=0.0).to(tl.float32)
        sigmoid = 1 / (1 + tl.exp(-gate))
        silu = gate * sigmoid
        total += pull * silu * up
        tl.store(activation + row * width + column, silu * up * share, mask=inside)
        pull *= share
        of_gate = pull * up * (sigmoid + silu * (1 - sigmoid))
        tl.store(of_hidden + row * 2 * width + column, of_gate, mask=inside)
        tl.store(of_hidden + row * 2 * width + width + column, pull * silu, mask=inside)
    tl.store(of_weight + row, tl.sum(total, 0))
