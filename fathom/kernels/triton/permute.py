"""Sorting by expert through counts, and rows moved without an atomic sum (twins of `fathom.kernels.permute`)."""

from typing import Any

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from fathom.kernels.permute import Permutation, row_count

CHUNK = 128  # pairs of one program
WIDE = 2048  # columns of one program


def permutation(experts: Int[Tensor, "N K"], n_experts: int, alignment: int = 1) -> Permutation:
    """Twin of the definition of the same name."""
    flat = experts.contiguous().flatten()
    pairs = len(flat)
    rows = row_count(pairs, n_experts, alignment)
    row = torch.empty(experts.shape, dtype=torch.int32, device=flat.device)
    order = torch.full((rows,), -1, dtype=torch.int32, device=flat.device)
    chunks = triton.cdiv(pairs, CHUNK)
    counts = torch.empty(n_experts, chunks, dtype=torch.int32, device=flat.device)
    if pairs:
        lanes = triton.next_power_of_2(n_experts + 1)
        _count[(chunks,)](flat, counts, pairs, n_experts, chunks, CHUNK=CHUNK, LANES=lanes)
    through = counts.cumsum(1, dtype=torch.int32)
    size = through[:, -1] if chunks else through.new_zeros(n_experts)
    offsets = torch.zeros(n_experts + 1, dtype=torch.int32, device=flat.device)
    torch.cumsum((size + (alignment - 1)) // alignment * alignment, 0, dtype=torch.int32, out=offsets[1:])
    if pairs:
        _place[(chunks,)](flat, counts, through, offsets, row, order, pairs, n_experts, chunks, CHUNK=CHUNK)
    return Permutation(row, order, offsets)


def permute(x: Float[Tensor, "N D"], p: Permutation) -> Float[Tensor, "P D"]:
    """Twin of the definition of the same name."""
    return _Permute.apply(x, *p)  # pyright: ignore[reportReturnType]


def unpermute(rows: Float[Tensor, "P D"], p: Permutation) -> Float[Tensor, "N D"]:
    """Twin of the definition of the same name."""
    return _Unpermute.apply(rows, *p)  # pyright: ignore[reportReturnType]


class _Permute(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *p: Tensor) -> Tensor:
        ctx.save_for_backward(*p)
        return _spread(x, Permutation(*p))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return _gather(grads[0], Permutation(*ctx.saved_tensors)), None, None, None


class _Unpermute(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, *p: Tensor) -> Tensor:
        ctx.save_for_backward(*p)
        return _gather(rows, Permutation(*p))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return _spread(grads[0], Permutation(*ctx.saved_tensors)), None, None, None


def _spread(x: Tensor, p: Permutation) -> Tensor:
    """Each token is read once and written K times."""
    x = x.contiguous()
    (tokens, chosen), rows, width = p.row.shape, len(p.order), x.shape[1]
    out = x.new_empty(rows, width)
    if out.numel():
        block = min(triton.next_power_of_2(width), WIDE)
        columns = triton.cdiv(width, block)
        warps = min(max(block // 512, 1), 4)
        _spread_rows[(tokens, columns)](x, p.row, out, width, CHOSEN=chosen, BLOCK=block, num_warps=warps)
        # rows that no token fills are few, and mostly at the end
        _clear_rows[(triton.cdiv(rows, CHUNK),)](p.order, out, rows, width, CHUNK=CHUNK, BLOCK=min(block, 1024))
    return out


def _gather(rows: Tensor, p: Permutation) -> Tensor:
    """Each token adds its K rows up."""
    rows = rows.contiguous()
    (tokens, chosen), width = p.row.shape, rows.shape[1]
    out = rows.new_empty(tokens, width)
    if out.numel():
        block = min(triton.next_power_of_2(width), WIDE)
        warps = min(max(block // 512, 1), 4)
        _gather_rows[(tokens, triton.cdiv(width, block))](
            rows, p.row, out, width, CHOSEN=chosen, BLOCK=block, num_warps=warps
        )
    return out


@triton.jit
def _count(experts, counts, pairs, n_experts, chunks, CHUNK: tl.constexpr, LANES: tl.constexpr):
    """How many pairs of this chunk go to each expert."""
    chunk = tl.program_id(0)
    pair = chunk * CHUNK + tl.arange(0, CHUNK)
    expert = tl.load(experts + pair, mask=pair < pairs, other=n_experts).to(tl.int32)
    found = tl.histogram(expert, LANES)
    lane = tl.arange(0, LANES)
    tl.store(counts + lane * chunks + chunk, found, mask=lane < n_experts)


@triton.jit
def _place(experts, counts, through, offsets, row, order, pairs, n_experts, chunks, CHUNK: tl.constexpr):
    """A pair's row: its group's first, and one for every pair of that expert before it."""
    chunk = tl.program_id(0)
    lane = tl.arange(0, CHUNK)
    pair = chunk * CHUNK + lane
    inside = pair < pairs
    expert = tl.load(experts + pair, mask=inside, other=n_experts).to(tl.int32)
    here = inside & (expert < n_experts)
    # the same again as a row, from memory, which holds it already in the other layout
    other = tl.load(experts + pair, mask=inside, other=n_experts).to(tl.int32)
    same = (expert[:, None] == other[None, :]) & (lane[None, :] < lane[:, None])
    rank = tl.sum(same.to(tl.int32), 1)
    cell = expert * chunks + chunk
    before = tl.load(through + cell, mask=here, other=0) - tl.load(counts + cell, mask=here, other=0)
    place = tl.load(offsets + expert, mask=here, other=0) + before + rank
    tl.store(row + pair, tl.where(here, place, -1), mask=inside)
    tl.store(order + place, pair, mask=here)


@triton.jit
def _spread_rows(x, row, out, width, CHOSEN: tl.constexpr, BLOCK: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    value = tl.load(x + token * width + column, mask=inside, other=0.0)
    for k in tl.static_range(CHOSEN):
        place = tl.load(row + token * CHOSEN + k).to(tl.int64)
        tl.store(out + place * width + column, value, mask=inside & (place >= 0))


@triton.jit
def _clear_rows(order, out, rows, width, CHUNK: tl.constexpr, BLOCK: tl.constexpr):
    first = tl.program_id(0).to(tl.int64) * CHUNK
    lane = tl.arange(0, CHUNK)
    empty = (tl.load(order + first + lane, mask=first + lane < rows, other=0) < 0).to(tl.int32)
    out += first * width
    if tl.sum(empty, 0) > 0:
        for index in range(0, CHUNK):
            if tl.sum(tl.where(lane == index, empty, 0), 0) > 0:
                for start in range(0, width, BLOCK):
                    column = start + tl.arange(0, BLOCK)
                    zero = tl.zeros((BLOCK,), out.dtype.element_ty)
                    tl.store(out + index * width + column, zero, mask=column < width)


@triton.jit
def _gather_rows(rows, row, out, width, CHOSEN: tl.constexpr, BLOCK: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    total = tl.zeros((BLOCK,), tl.float32)
    for k in tl.static_range(CHOSEN):
        place = tl.load(row + token * CHOSEN + k).to(tl.int64)
        total += tl.load(rows + place * width + column, mask=inside & (place >= 0), other=0.0).to(tl.float32)
    tl.store(out + token * width + column, total, mask=inside)
