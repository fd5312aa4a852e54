"""RMSNorm behind an addition, a row at a time in registers (twin of `fathom.kernels.norm.add_rms_norm`)."""

from typing import Any

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

PROGRAMS = 1056  # of the backward pass: 8 a processor; each sums its rows' part of the weight's gradient


def add_rms_norm(
    x: Float[Tensor, "*N D"], residual: Float[Tensor, "*N D"], weight: Float[Tensor, " D"], eps: float
) -> tuple[Float[Tensor, "*N D"], Float[Tensor, "*N D"]]:
    """Twin of the definition of the same name."""
    return _AddRMSNorm.apply(x, residual, weight, eps)  # pyright: ignore[reportReturnType]


class _AddRMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        x, residual = x.contiguous(), residual.contiguous()
        total = torch.empty_like(x, dtype=torch.promote_types(x.dtype, residual.dtype))
        normed = torch.empty_like(total)
        width = x.shape[-1]
        rows = x.numel() // width
        inverse = torch.empty(rows, device=x.device)
        if rows:
            block = triton.next_power_of_2(width)
            _forward[(rows,)](
                x, residual, weight, total, normed, inverse, width, eps, BLOCK=block, num_warps=_warps(block)
            )
        ctx.save_for_backward(total, weight, inverse)
        ctx.dtypes = x.dtype, residual.dtype
        return total, normed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        total, weight, inverse = ctx.saved_tensors
        grad_total, grad_normed = (grad.contiguous() for grad in grads)
        grad = torch.empty_like(total)
        rows, width = inverse.numel(), total.shape[-1]
        programs = min(rows, PROGRAMS)
        parts = torch.zeros(max(programs, 1), width, device=total.device)
        if rows:
            block = triton.next_power_of_2(width)
            _backward[(programs,)](
                total, weight, inverse, grad_total, grad_normed, grad, parts, rows, width,
                BLOCK=block, num_warps=_warps(block),
            )  # fmt: skip
        of_x, of_residual = ctx.dtypes
        return grad.to(of_x), grad.to(of_residual), parts.sum(0).to(weight.dtype), None


def _warps(block: int) -> int:
    """16 numbers a thread, within what a processor takes."""
    return min(max(block // 512, 1), 16)


@triton.jit
def _forward(x, residual, weight, total, normed, inverse, width, eps, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < width
    place = row * width + column
    value = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
    value += tl.load(residual + place, mask=inside, other=0.0).to(tl.float32)
    value = value.to(total.dtype.element_ty)  # the norm is that of the sum as it is stored
    tl.store(total + place, value, mask=inside)
    value = value.to(tl.float32)
    scale = 1 / tl.sqrt(tl.sum(value * value, 0) / width + eps)
    gain = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(normed + place, value * scale * gain, mask=inside)
    tl.store(inverse + row, scale)


@triton.jit
def _backward(
    total, weight, inverse, grad_total, grad_normed, grad, parts, rows, width, BLOCK: tl.constexpr
):  # fmt: skip
    first, step = tl.program_id(0), tl.num_programs(0)
    column = tl.arange(0, BLOCK)
    inside = column < width
    gain = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    of_weight = tl.zeros((BLOCK,), tl.float32)
    stride = tl.full((), 1, tl.int64) * width
    for row in tl.range(first, rows, step):
        place = row * stride + column
        scale = tl.load(inverse + row)
        unit = tl.load(total + place, mask=inside, other=0.0).to(tl.float32) * scale
        pull = tl.load(grad_normed + place, mask=inside, other=0.0).to(tl.float32)
        of_weight += pull * unit
        pull *= gain
        along = tl.sum(pull * unit, 0) / width  # the part that would change the row's norm
        out = (pull - unit * along) * scale
        out += tl.load(grad_total + place, mask=inside, other=0.0).to(tl.float32)
        tl.store(grad + place, out, mask=inside)
    tl.store(parts + first.to(tl.int64) * width + column, of_weight, mask=inside)
