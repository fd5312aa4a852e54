"""Products of few rows: bound by reading the weights once, so what surrounds them is fused into them."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

TILE = 16  # rows of one, the fewest: more tiles keep more processors busy, and share weights in the L2 cache

# Tiles that were fastest on an H200, for one row and for more, for few outputs and for many.
WIDE = 4096  # outputs that count as many
CROWD = 128  # rows from which on few outputs are cut as coarsely as many
ONE_NARROW = {"BLOCK_O": 4, "BLOCK_D": 1024, "num_warps": 4}
ONE_WIDE = {"BLOCK_O": 8, "BLOCK_D": 1024, "num_warps": 4}
MORE_NARROW = {"BLOCK_O": 32, "BLOCK_D": 128, "num_warps": 2, "num_stages": 4}
MORE_CROWDED = {"BLOCK_O": 64, "BLOCK_D": 128, "num_warps": 2, "num_stages": 4}
MORE_WIDE = {"BLOCK_O": 128, "BLOCK_D": 64, "num_warps": 4, "num_stages": 4}


def overlaps(x: Tensor) -> bool:
    """Whether a kernel may be started while the one before still runs, to load its weights: Hopper and later."""
    return x.is_cuda and torch.cuda.get_device_capability(x.device)[0] >= 9


def row_block(rows: int) -> int:
    """Rows of one tile; 1 means that products are sums over vectors, without matrix units."""
    return 1 if rows == 1 else TILE


def precision(weight: Tensor) -> str:
    """Float32 is multiplied as such, not as TF32."""
    return "ieee" if weight.dtype == torch.float32 else "tf32"


@triton.jit
def silu(x):
    return x / (1 + tl.exp(-x))


@triton.jit
def few_rows(
    x, gain, weight, second, out,
    rows, width, outputs, more, x_row, x_batch, w_batch, out_row, out_batch, eps,
    NORM: tl.constexpr, SWIGLU: tl.constexpr, ADD: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One tile of outputs, of `weight` or of `second` beside it; program 2 counts batches, such as heads."""
    tile, batch = tl.program_id(0), tl.program_id(2)
    tiles = tl.cdiv(outputs, BLOCK_O)
    shift = 0
    limit = outputs
    if tile >= tiles:
        weight = second
        tile -= tiles
        shift = outputs
        limit = more
    o = tile * BLOCK_O + tl.arange(0, BLOCK_O)
    d = tl.arange(0, BLOCK_D)
    w_at = weight + batch * w_batch + o[:, None].to(tl.int64) * width + d[None, :]
    x += batch * x_batch
    if PDL:
        gdc_launch_dependents()
    if BLOCK_N == 1:
        row = tl.program_id(1)
        w = tl.load(w_at, mask=(o[:, None] < limit) & (d[None, :] < width), other=0.0)
        if PDL:
            gdc_wait()  # behind the first weights, which no kernel before writes
        total = tl.zeros((BLOCK_O,), tl.float32)
        square = 0.0
        for start in tl.range(0, width, BLOCK_D):
            at = x + row * x_row + start + d
            inside = start + d < width
            v = tl.load(at, mask=inside, other=0.0).to(tl.float32)
            if SWIGLU:
                v = silu(v) * tl.load(at + width, mask=inside, other=0.0).to(tl.float32)
            if NORM:
                square += tl.sum(v * v)
                v *= tl.load(gain + start + d, mask=inside, other=0.0).to(tl.float32)
            total += tl.sum(w.to(tl.float32) * v[None, :], 1)
            if start + BLOCK_D < width:
                ahead = start + BLOCK_D + d < width
                w = tl.load(w_at + start + BLOCK_D, mask=(o[:, None] < limit) & ahead[None, :], other=0.0)
        if NORM:
            total *= tl.rsqrt(square / width + eps)
        out_at = out + batch * out_batch + row * out_row + shift + o
        if ADD:
            total += tl.load(out_at, mask=o < limit, other=0.0).to(tl.float32)
        tl.store(out_at, total.to(out.dtype.element_ty), mask=o < limit)
    else:
        if PDL:
            gdc_wait()
        n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
        x_at = x + n[:, None] * x_row + d[None, :]
        total = tl.zeros((BLOCK_N, BLOCK_O), tl.float32)
        square = tl.zeros((BLOCK_N,), tl.float32)
        for start in tl.range(0, width, BLOCK_D):
            inside = start + d < width
            read = (n[:, None] < rows) & inside[None, :]
            w = tl.load(w_at + start, mask=(o[:, None] < limit) & inside[None, :], other=0.0)
            v = tl.load(x_at + start, mask=read, other=0.0)
            if SWIGLU:
                v = v.to(tl.float32)
                v = silu(v) * tl.load(x_at + start + width, mask=read, other=0.0).to(tl.float32)
            if NORM:
                v = v.to(tl.float32)
                square += tl.sum(v * v, 1)
                v *= tl.load(gain + start + d, mask=inside, other=0.0).to(tl.float32)[None, :]
            total = tl.dot(v.to(w.dtype), tl.trans(w), total, input_precision=PRECISION)
        if NORM:
            total *= tl.rsqrt(square / width + eps)[:, None]
        out_at = out + batch * out_batch + n[:, None] * out_row + shift + o[None, :]
        write = (n[:, None] < rows) & (o[None, :] < limit)
        if ADD:
            total += tl.load(out_at, mask=write, other=0.0).to(tl.float32)
        tl.store(out_at, total.to(out.dtype.element_ty), mask=write)


def _sizes(rows: int, outputs: int) -> dict[str, Any]:
    if rows == 1:
        return ONE_WIDE if outputs >= WIDE else ONE_NARROW
    return MORE_WIDE if outputs >= WIDE else MORE_CROWDED if rows >= CROWD else MORE_NARROW


def launch(
    x: Tensor,
    weight: Tensor,
    out: Tensor,
    *,
    gain: Tensor | None = None,
    second: Tensor | None = None,
    eps: float = 0.0,
    swiglu: bool = False,
    add: bool = False,
    heads: tuple[int, int, int, int] = (1, 0, 0, 0),
) -> None:
    """out (+)= f(x) @ [weight; second].T; `heads` are a count and the strides of x, weight and out between heads."""
    rows, (outputs, width) = x.shape[0], weight.shape[-2:]
    more = 0 if second is None else second.shape[0]
    count, x_batch, w_batch, out_batch = heads
    block_n = row_block(rows)
    sizes = _sizes(rows, (outputs + more) * count)
    if block_n == 1:
        sizes = sizes | {"BLOCK_D": min(sizes["BLOCK_D"], triton.next_power_of_2(width))}
    elif weight.itemsize == 4:
        sizes = sizes | {"BLOCK_D": sizes["BLOCK_D"] // 2}
    block_o = sizes["BLOCK_O"]
    grid = (triton.cdiv(outputs, block_o) + triton.cdiv(more, block_o), triton.cdiv(rows, block_n), count)
    pdl = overlaps(x)
    few_rows[grid](
        x, weight if gain is None else gain, weight, weight if second is None else second, out,
        rows, width, outputs, more, x.stride(0), x_batch, w_batch, out.stride(0), out_batch, eps,
        NORM=gain is not None, SWIGLU=swiglu, ADD=add,
        BLOCK_N=block_n, PRECISION=precision(weight), PDL=pdl, launch_pdl=pdl, **sizes,
    )  # fmt: skip
