"""Absorbed attention on Hopper over packed latents (`fathom.kernels.latents`), else as `attention_few`.

The copying warp brings the codes as they are; the multiplying warps write them out in BF16, exactly, into the one tile
that both products read. A token's scale multiplies its scores, and its weights before they meet the values.
"""

import torch
import triton
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from fathom.kernels.triton.attention_few import QUERIES, START, put_columns, weigh
from fathom.kernels.triton.attention_splits import Parts, choose_splits, processors
from fathom.kernels.triton.attention_tiles import BLOCK, RANKS, ROPES, clear_tail, load_queries, on_hopper, split_blocks

PANEL = 128  # codes in 128 bytes
FIELD = 4  # float32 numbers in the 16 bytes that a copy takes at least: the scale and zeros


def can_unpack(q: Tensor, pages: Tensor, rank: int) -> bool:
    """Whether the kernel can take it: on Hopper, queries in BF16, pages that hold whole tiles."""
    types = q.dtype == torch.bfloat16 and pages.dtype == torch.uint8
    return types and rank in RANKS and q.shape[3] - rank in ROPES and pages.shape[1] % BLOCK == 0 and on_hopper(q)


@gluon.jit
def _copy_packed(
    codes, ropes, units, k8, k_rope, unit, full, empty, table, first, last,
    PAGE: gl.constexpr, RANK: gl.constexpr, ROPE: gl.constexpr, BLOCK: gl.constexpr, PANEL: gl.constexpr,
):  # fmt: skip
    """The copying warp; columns count in elements of each view of the same bytes."""
    PANELS: gl.constexpr = RANK // PANEL
    slot = first * 0
    phase = first * 0 + 1  # a fresh barrier counts as passed in phase 1: both slots begin empty
    for block in range(first, last):
        place = gl.load(table + block * BLOCK // PAGE) * PAGE + block * BLOCK % PAGE
        bar = full.index(slot)
        mbarrier.wait(empty.index(slot), phase)
        mbarrier.expect(bar, BLOCK * (RANK + 2 * ROPE + 16))
        for panel in gl.static_range(PANELS):
            tma.async_copy_global_to_shared(codes, [place, panel * PANEL], bar, k8.index(slot * PANELS + panel))
        tma.async_copy_global_to_shared(ropes, [place, RANK // 2], bar, k_rope.index(slot))
        tma.async_copy_global_to_shared(units, [place, RANK // 4 + ROPE // 2], bar, unit.index(slot))
        phase = phase ^ slot
        slot = 1 - slot


@gluon.jit
def _attend_packed(
    q, q_halves, q_rope, k8, k_panels, k, k_rope, unit, p, full, empty, out, lse, length, factor,
    time, heads, row, first_query, split, splits, end, first, last,
    RANK: gl.constexpr, ROPE: gl.constexpr, QUERIES: gl.constexpr, BLOCK: gl.constexpr, PANELS: gl.constexpr,
    SPLIT: gl.constexpr,
):  # fmt: skip
    """The multiplying warps: scores (BLOCK, QUERIES), results (RANK / 2, QUERIES) of the left and the right half."""
    HALF: gl.constexpr = RANK // 2
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, QUERIES, 16])
    by_query: gl.constexpr = gl.SliceLayout(0, layout)
    by_token: gl.constexpr = gl.SliceLayout(1, layout)
    sixteen: gl.constexpr = gl.BlockedLayout([1, 16], [4, 8], [4, 1], [1, 0])
    fields: gl.constexpr = gl.BlockedLayout([1, 4], [32, 1], [4, 1], [1, 0])
    queries = time * heads
    load_queries(q, q_halves, q_rope, row, first_query, queries, RANK, ROPE, QUERIES)
    query = first_query + gl.arange(0, QUERIES, by_query)
    limit = length + query // heads
    top = gl.full([QUERIES], float("-inf"), gl.float32, by_query)
    nothing = gl.zeros([BLOCK, QUERIES], gl.float32, layout)
    total = nothing  # of the weights, summed over tokens at the end
    left = gl.zeros([HALF, QUERIES], gl.float32, layout)
    right = left
    slot = first * 0
    phase = first * 0
    for block in range(first, last):
        token = block * BLOCK + gl.arange(0, BLOCK, by_token)
        mbarrier.wait(full.index(slot), phase)
        for panel in gl.static_range(PANELS):
            codes = k8.index(slot * PANELS + panel).load(sixteen)
            k_panels.index(panel).store(codes.to(gl.float32).to(gl.bfloat16))  # faster than from float16, its other way
        clear_tail(k_panels, 0, block, end, BLOCK, PANELS)
        field = unit.index(slot).load(fields)
        scale = gl.convert_layout(gl.max(field, 1), by_token)  # behind the scale, which is positive, are zeros
        scale = gl.expand_dims(gl.where(token < end, scale, 0.0), 1)
        fence_async_shared()
        gl.thread_barrier()
        score = warpgroup_mma(k.index(0), q_halves.index(0).permute((1, 0)), nothing, use_acc=False, is_async=True)
        score = warpgroup_mma(k.index(1), q_halves.index(1).permute((1, 0)), score, is_async=True)
        turned = warpgroup_mma(k_rope.index(slot), q_rope.permute((1, 0)), nothing, use_acc=False, is_async=True)
        score, turned = warpgroup_mma_wait(0, deps=[score, turned])
        mbarrier.arrive(empty.index(slot))
        score = score * scale + turned
        if block * BLOCK + BLOCK > length:
            score = gl.where(gl.expand_dims(token, 1) < gl.expand_dims(limit, 0), score, float("-inf"))
        weight, decay, total, top = weigh(score, top, total, factor)
        p.store((weight * scale).to(gl.bfloat16))
        fence_async_shared()
        gl.thread_barrier()
        left_next = warpgroup_mma(k.index(0).permute((1, 0)), p, left * decay, is_async=True)
        right_next = warpgroup_mma(k.index(1).permute((1, 0)), p, right * decay, is_async=True)
        left, right = warpgroup_mma_wait(0, deps=[left_next, right_next])
        gl.thread_barrier()  # the tile is written over next
        phase = phase ^ slot
        slot = 1 - slot
    put_columns(out, lse, left, right, total, top, query, row, queries, split, splits, RANK, SPLIT, layout)


@gluon.jit
def attend_packed(
    q, codes, ropes, units, table, length, out, lse,
    factor, time, heads, query_blocks, splits, row_stride,
    PAGE: gl.constexpr, RANK: gl.constexpr, ROPE: gl.constexpr, QUERIES: gl.constexpr, BLOCK: gl.constexpr,
    PANEL: gl.constexpr, FIELD: gl.constexpr, SPLIT: gl.constexpr,
):  # fmt: skip
    """QUERIES queries of one row of the batch against one split of its tokens."""
    HALF: gl.constexpr = RANK // 2
    PANELS: gl.constexpr = RANK // PANEL
    swizzled: gl.constexpr = gl.NVMMASharedLayout(128, 16, 2)
    first_query = gl.program_id(0) % query_blocks * QUERIES
    split = gl.program_id(0) // query_blocks
    row = gl.program_id(1)
    length_here = gl.load(length + row)
    end, first, last = split_blocks(length_here, split, splits, time, BLOCK)

    q_halves = gl.allocate_shared_memory(gl.bfloat16, [2, QUERIES, HALF], swizzled)
    q_rope = gl.allocate_shared_memory(gl.bfloat16, [QUERIES, ROPE], ropes.layout)
    k8 = gl.allocate_shared_memory(gl.float8e4nv, [2 * PANELS, BLOCK, PANEL], codes.layout)
    k_panels = gl.allocate_shared_memory(gl.bfloat16, [PANELS, BLOCK, PANEL], swizzled)
    k = k_panels._reinterpret(gl.bfloat16, [2, BLOCK, HALF], swizzled)
    k_rope = gl.allocate_shared_memory(gl.bfloat16, [2, BLOCK, ROPE], ropes.layout)
    unit = gl.allocate_shared_memory(gl.float32, [2, BLOCK, FIELD], units.layout)
    p = gl.allocate_shared_memory(gl.bfloat16, [BLOCK, QUERIES], gl.NVMMASharedLayout(2 * QUERIES, 16, 2))
    full = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(2):
        mbarrier.init(full.index(i), count=1)
        mbarrier.init(empty.index(i), count=1)
    fence_async_shared()

    gl.warp_specialize([
        (_attend_packed, (q, q_halves, q_rope, k8, k_panels, k, k_rope, unit, p, full, empty, out, lse, length_here,
                          factor, time, heads, row, first_query, split, splits, end, first, last,
                          RANK, ROPE, QUERIES, BLOCK, PANELS, SPLIT)),
        (_copy_packed, (codes, ropes, units, k8, k_rope, unit, full, empty, table + row * row_stride, first, last,
                        PAGE, RANK, ROPE, BLOCK, PANEL)),
    ], [1], [24])  # fmt: skip


def attention_of_packed(
    q: Tensor, pages: Tensor, table: Tensor, length: Tensor, rank: int, scale_log2: float, splits: int | None = None
) -> Tensor:
    """For what it `can_unpack`; `splits` parts a context if given."""
    batch, time, heads, width = q.shape
    rope = width - rank
    columns = min(QUERIES[-1], max(QUERIES[0], triton.next_power_of_2(time * heads)))
    query_blocks = triton.cdiv(time * heads, columns)
    if splits is None:
        blocks = triton.cdiv(table.shape[1] * pages.shape[1], BLOCK)
        resident = 1 if rank > 256 else 2
        splits = choose_splits(
            batch * query_blocks, blocks, resident * processors(q.device), START, batch * time * heads
        )
    parts = Parts(q, rank, splits)
    flat = pages.view(-1, pages.shape[2])
    attend_packed[(query_blocks * splits, batch)](
        q.contiguous(),
        TensorDescriptor.from_tensor(flat.view(torch.float8_e4m3fn), [BLOCK, PANEL], gl.NVMMASharedLayout(128, 8, 2)),
        TensorDescriptor.from_tensor(flat.view(torch.bfloat16), [BLOCK, rope], gl.NVMMASharedLayout(2 * rope, 16, 2)),
        TensorDescriptor.from_tensor(flat.view(torch.float32), [BLOCK, FIELD], gl.NVMMASharedLayout(0, 32, 2)),
        table,
        length,
        parts.parts,
        parts.lse,
        scale_log2,
        time,
        heads,
        query_blocks,
        splits,
        table.stride(0),
        PAGE=pages.shape[1],
        RANK=rank,
        ROPE=rope,
        QUERIES=columns,
        BLOCK=BLOCK,
        PANEL=PANEL,
        FIELD=FIELD,
        SPLIT=splits > 1,
        num_warps=4,
        maxnreg=128 if rank * columns <= 512 * 16 else 168,  # two programs a multiprocessor need the former
    )
    return parts.join()
