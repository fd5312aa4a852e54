"""Experts for few tokens: up to E choices in all, each token reads its own; with more, experts gather their tokens."""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from fathom.kernels.triton.linear import launch, overlaps, precision, silu

# Tiles that were fastest on an H200.
UP_BY_TOKEN = {"BLOCK_M": 4, "BLOCK_D": 1024, "num_warps": 4}
UP_BY_EXPERT = {"BLOCK_M": 64, "BLOCK_D": 64, "num_warps": 4, "num_stages": 3}
DOWN_BY_TOKEN = {"BLOCK_O": 8, "BLOCK_M": 512, "num_warps": 4}
DOWN_BY_EXPERT = {"BLOCK_O": 64, "BLOCK_M": 64, "num_warps": 8, "num_stages": 2}


@triton.jit
def _up_by_token(
    x, gain, experts, weights, gate_up, inner, x_row, width, eps,
    K: tl.constexpr, M: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """A tile of one token's one expert."""
    slot = tl.program_id(0)
    m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    d = tl.arange(0, BLOCK_D)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    expert = tl.load(experts + slot).to(tl.int64)
    w_at = gate_up + (expert * 2 * M + m[:, None]) * width + d[None, :]
    x += slot // K * x_row
    gate = tl.zeros((BLOCK_M,), tl.float32)
    up = tl.zeros((BLOCK_M,), tl.float32)
    square = 0.0
    for start in tl.range(0, width, BLOCK_D):
        inside = start + d < width
        read = (m[:, None] < M) & inside[None, :]
        w_gate = tl.load(w_at + start, mask=read, other=0.0).to(tl.float32)
        w_up = tl.load(w_at + M * width + start, mask=read, other=0.0).to(tl.float32)
        v = tl.load(x + start + d, mask=inside, other=0.0).to(tl.float32)
        square += tl.sum(v * v)
        v *= tl.load(gain + start + d, mask=inside, other=0.0).to(tl.float32)
        gate += tl.sum(w_gate * v[None, :], 1)
        up += tl.sum(w_up * v[None, :], 1)
    norm = tl.rsqrt(square / width + eps)
    result = silu(gate * norm) * (up * norm) * tl.load(weights + slot)
    tl.store(inner + slot * M + m, result.to(inner.dtype.element_ty), mask=m < M)


@triton.jit
def _group(experts, members, counts, slots, BLOCK: tl.constexpr, PDL: tl.constexpr):
    """The slots that chose one expert, in their order: each slot is one choice of one token."""
    expert = tl.program_id(0)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    count = 0
    for start in tl.range(0, slots, BLOCK):
        slot = start + tl.arange(0, BLOCK)
        mine = (tl.load(experts + slot, mask=slot < slots, other=-1) == expert).to(tl.int32)
        tl.store(members + expert * slots + count + tl.cumsum(mine, 0) - mine, slot, mask=mine > 0)
        count += tl.sum(mine)
    tl.store(counts + expert, count)


@triton.jit
def _up_by_expert(
    x, gain, members, counts, weights, gate_up, inner, slots, x_row, width, eps,
    K: tl.constexpr, M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr, PRECISION: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """A tile of one expert for all tokens that chose it."""
    expert = tl.program_id(0)
    m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    d = tl.arange(0, BLOCK_D)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    count = tl.load(counts + expert)
    w_at = gate_up + (expert.to(tl.int64) * 2 * M + m[:, None]) * width + d[None, :]
    for first in tl.range(0, count, BLOCK_N):
        j = first + tl.arange(0, BLOCK_N)
        own = tl.load(members + expert * slots + j, mask=j < count, other=0)
        x_at = x + (own // K)[:, None] * x_row + d[None, :]
        gate = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
        up = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
        square = tl.zeros((BLOCK_N,), tl.float32)
        for start in tl.range(0, width, BLOCK_D):
            inside = start + d < width
            read = (m[:, None] < M) & inside[None, :]
            w_gate = tl.load(w_at + start, mask=read, other=0.0)
            w_up = tl.load(w_at + M * width + start, mask=read, other=0.0)
            v = tl.load(x_at + start, mask=(j[:, None] < count) & inside[None, :], other=0.0).to(tl.float32)
            square += tl.sum(v * v, 1)
            v *= tl.load(gain + start + d, mask=inside, other=0.0).to(tl.float32)[None, :]
            v = v.to(w_gate.dtype)
            gate = tl.dot(v, tl.trans(w_gate), gate, input_precision=PRECISION)
            up = tl.dot(v, tl.trans(w_up), up, input_precision=PRECISION)
        norm = tl.rsqrt(square / width + eps)[:, None]
        result = silu(gate * norm) * (up * norm) * tl.load(weights + own)[:, None]
        write = (j[:, None] < count) & (m[None, :] < M)
        tl.store(inner + own[:, None] * M + m[None, :], result.to(inner.dtype.element_ty), mask=write)


@triton.jit
def _down_by_token(
    x, inner, experts, down, shared_gate_up, shared_down, width, x_row, shared_row, shared_width,
    K: tl.constexpr, M: tl.constexpr, SHARED: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_M: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """A tile of one token's sum over its experts, in their order, and onto the residual stream."""
    row = tl.program_id(0)
    o = tl.program_id(1) * BLOCK_O + tl.arange(0, BLOCK_O)
    m = tl.arange(0, BLOCK_M)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    total = tl.zeros((BLOCK_O,), tl.float32)
    for k in tl.static_range(K):
        expert = tl.load(experts + row * K + k).to(tl.int64)
        for start in tl.range(0, M, BLOCK_M):
            inside = start + m < M
            w = tl.load(
                down + (expert * width + o[:, None]) * M + start + m[None, :],
                mask=(o[:, None] < width) & inside[None, :], other=0.0,
            )  # fmt: skip
            v = tl.load(inner + (row * K + k) * M + start + m, mask=inside, other=0.0)
            total += tl.sum(w.to(tl.float32) * v.to(tl.float32)[None, :], 1)
    if SHARED:
        for start in tl.range(0, shared_width, BLOCK_M):
            inside = start + m < shared_width
            at = shared_gate_up + row * shared_row + start + m
            w = tl.load(
                shared_down + o[:, None] * shared_width + start + m[None, :],
                mask=(o[:, None] < width) & inside[None, :], other=0.0,
            )  # fmt: skip
            v = silu(tl.load(at, mask=inside, other=0.0)) * tl.load(at + shared_width, mask=inside, other=0.0)
            total += tl.sum(w.to(tl.float32) * v[None, :], 1)
    x += row * x_row + o
    total += tl.load(x, mask=o < width, other=0.0).to(tl.float32)
    tl.store(x, total.to(x.dtype.element_ty), mask=o < width)


@triton.jit
def _down_by_expert(
    inner, members, counts, down, partial, slots, width,
    M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_M: tl.constexpr,
    PRECISION: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """A tile of one expert's outputs for all tokens that chose it, each in its own slot."""
    expert = tl.program_id(0)
    o = tl.program_id(1) * BLOCK_O + tl.arange(0, BLOCK_O)
    m = tl.arange(0, BLOCK_M)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    count = tl.load(counts + expert)
    w_at = down + (expert.to(tl.int64) * width + o[:, None]) * M + m[None, :]
    for first in tl.range(0, count, BLOCK_N):
        j = first + tl.arange(0, BLOCK_N)
        own = tl.load(members + expert * slots + j, mask=j < count, other=0)
        total = tl.zeros((BLOCK_N, BLOCK_O), tl.float32)
        for start in tl.range(0, M, BLOCK_M):
            inside = start + m < M
            w = tl.load(w_at + start, mask=(o[:, None] < width) & inside[None, :], other=0.0)
            v = tl.load(
                inner + own[:, None] * M + start + m[None, :], mask=(j[:, None] < count) & inside[None, :], other=0.0
            )
            total = tl.dot(v, tl.trans(w), total, input_precision=PRECISION)
        write = (j[:, None] < count) & (o[None, :] < width)
        tl.store(partial + own[:, None] * width + o[None, :], total, mask=write)


@triton.jit
def _add_slots(x, partial, x_row, width, K: tl.constexpr, BLOCK_O: tl.constexpr, PDL: tl.constexpr):
    """x += the sum over a token's slots, in their order."""
    row = tl.program_id(0)
    o = tl.program_id(1) * BLOCK_O + tl.arange(0, BLOCK_O)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    total = tl.zeros((BLOCK_O,), tl.float32)
    for k in tl.static_range(K):
        total += tl.load(partial + (row * K + k) * width + o, mask=o < width, other=0.0)
    x += row * x_row + o
    total += tl.load(x, mask=o < width, other=0.0).to(tl.float32)
    tl.store(x, total.to(x.dtype.element_ty), mask=o < width)


def add_experts_(
    x: Tensor,
    gain: Tensor,
    eps: float,
    experts: Tensor,
    weights: Tensor,
    gate_up: Tensor,
    down: Tensor,
    shared_gate_up: Tensor | None = None,
    shared_down: Tensor | None = None,
    gather: bool | None = None,
) -> None:
    (rows, k), (n_experts, width, size) = experts.shape, down.shape
    inner = torch.empty(rows, k, size, dtype=gate_up.dtype, device=x.device)
    if rows * k <= n_experts if gather is None else not gather:
        _up_one(x, gain, eps, experts, weights, gate_up, inner)
        _down_one(x, inner, experts, down, shared_gate_up, shared_down)
        return
    slots, pdl = rows * k, overlaps(x)
    members = torch.empty(n_experts, slots, dtype=torch.int32, device=x.device)
    counts = torch.empty(n_experts, dtype=torch.int32, device=x.device)
    partial = torch.empty(slots, width, dtype=torch.float32, device=x.device)
    block = min(1024, triton.next_power_of_2(slots))
    _group[(n_experts,)](experts, members, counts, slots, BLOCK=block, PDL=pdl, launch_pdl=pdl, num_warps=4)
    # near what an expert has; always the same where `gather` was asked for, since tiles round differently
    block_n = 16 if gather else min(64, max(16, triton.next_power_of_2(slots // n_experts)))
    shape = {"BLOCK_N": block_n, "PRECISION": precision(down), "PDL": pdl, "launch_pdl": pdl}
    _up_by_expert[(n_experts, triton.cdiv(size, UP_BY_EXPERT["BLOCK_M"]))](
        x, gain, members, counts, weights, gate_up, inner, slots, x.stride(0), width, eps, K=k, M=size,
        **shape, **UP_BY_EXPERT,
    )  # fmt: skip
    _down_by_expert[(n_experts, triton.cdiv(width, DOWN_BY_EXPERT["BLOCK_O"]))](
        inner, members, counts, down, partial, slots, width, M=size, **shape, **DOWN_BY_EXPERT
    )
    if shared_gate_up is not None and shared_down is not None:
        launch(shared_gate_up, shared_down, x, swiglu=True, add=True)
    _add_slots[(rows, triton.cdiv(width, 512))](
        x, partial, x.stride(0), width, K=k, BLOCK_O=512, PDL=pdl, launch_pdl=pdl, num_warps=4
    )


def _up_one(
    x: Tensor, gain: Tensor, eps: float, experts: Tensor, weights: Tensor, gate_up: Tensor, inner: Tensor
) -> None:
    width, (_, k, size), pdl = x.shape[1], inner.shape, overlaps(x)
    sizes = UP_BY_TOKEN | {"BLOCK_D": min(UP_BY_TOKEN["BLOCK_D"], triton.next_power_of_2(width))}
    _up_by_token[(experts.numel(), triton.cdiv(size, sizes["BLOCK_M"]))](
        x, gain, experts, weights, gate_up, inner, x.stride(0), width, eps, K=k, M=size,
        PDL=pdl, launch_pdl=pdl, **sizes,
    )  # fmt: skip


def _down_one(
    x: Tensor,
    inner: Tensor,
    experts: Tensor,
    down: Tensor,
    shared_gate_up: Tensor | None,
    shared_down: Tensor | None,
) -> None:
    (rows, k, size), width, pdl = inner.shape, x.shape[1], overlaps(x)
    shared = shared_gate_up is not None and shared_down is not None
    gates, back = (shared_gate_up, shared_down) if shared else (inner, down)
    sizes = DOWN_BY_TOKEN | {"BLOCK_M": min(DOWN_BY_TOKEN["BLOCK_M"], triton.next_power_of_2(size))}
    _down_by_token[(rows, triton.cdiv(width, sizes["BLOCK_O"]))](
        x, inner, experts, down, gates, back, width, x.stride(0), gates.stride(0), back.shape[1],
        K=k, M=size, SHARED=shared, PDL=pdl, launch_pdl=pdl, **sizes,
    )  # fmt: skip
