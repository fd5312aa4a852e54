"""Absorbed attention on Hopper for many queries a row, where the products and not the reads are the limit.

A program owns 64 queries. The first warpgroup makes the scores and their softmax and multiplies the left half of the
values; the second multiplies the right half; a warp copies. A tile is read once: it holds the keys and, in its first R
columns, the values.
"""

import triton
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from fathom.kernels.triton.attention_splits import Parts, choose_splits, processors
from fathom.kernels.triton.attention_tiles import (
    BLOCK,
    PANEL,
    clear_tail,
    copy_tiles,
    describe_pages,
    load_queries,
    split_blocks,
)

QUERIES = 64  # rows of a warpgroup's product
START = 4.0  # time of a program outside its loop, in tiles


@gluon.jit
def _put(
    out, lse, acc, log, first_query, queries, row, split, splits, left,
    RANK: gl.constexpr, QUERIES: gl.constexpr, SPLIT: gl.constexpr, layout: gl.constexpr,
):  # fmt: skip
    HALF: gl.constexpr = RANK // 2
    query = first_query + gl.arange(0, QUERIES, gl.SliceLayout(1, layout))
    place = (row * queries + query).to(gl.int64)
    if SPLIT:
        place = place * splits + split
        if left == 0:
            gl.store(lse + place, log, mask=query < queries)
    column = left + gl.arange(0, HALF, gl.SliceLayout(0, layout))
    at = out + gl.expand_dims(place * RANK, 1) + gl.expand_dims(column, 0)
    gl.store(at, acc.to(out.dtype.element_ty), mask=gl.expand_dims(query < queries, 1))


@gluon.jit
def _score_and_multiply(
    q, q_halves, q_rope, k, k_rope, panels, p, shared_row, full, empty, handed, taken, out, lse, length, factor,
    time, heads, row, first_query, split, splits, end, first, last,
    RANK: gl.constexpr, ROPE: gl.constexpr, QUERIES: gl.constexpr, BLOCK: gl.constexpr, PANELS: gl.constexpr,
    SPLIT: gl.constexpr,
):  # fmt: skip
    """First warpgroup: scores, softmax, left half of the values."""
    HALF: gl.constexpr = RANK // 2
    scores: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK, 16])
    wide: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, HALF, 16])
    by_score: gl.constexpr = gl.SliceLayout(1, scores)
    by_value: gl.constexpr = gl.SliceLayout(1, wide)
    load_queries(q, q_halves, q_rope, row, first_query, time * heads, RANK, ROPE, QUERIES)
    query = first_query + gl.arange(0, QUERIES, by_score)
    limit = length + query // heads
    top = gl.full([QUERIES], float("-inf"), gl.float32, by_score)
    total = gl.zeros([QUERIES], gl.float32, by_score)
    nothing = gl.zeros([QUERIES, BLOCK], gl.float32, scores)
    acc = gl.zeros([QUERIES, HALF], gl.float32, wide)
    slot = first * 0
    phase = first * 0
    turn = first * 0
    for block in range(first, last):
        mbarrier.wait(full.index(slot * 2), phase)
        score = warpgroup_mma(
            q_halves.index(0), k.index(slot * 2).permute((1, 0)), nothing, use_acc=False, is_async=True
        )
        score = warpgroup_mma(q_rope, k_rope.index(slot).permute((1, 0)), score, is_async=True)
        mbarrier.wait(full.index(slot * 2 + 1), phase)
        score = warpgroup_mma(q_halves.index(1), k.index(slot * 2 + 1).permute((1, 0)), score, is_async=True)
        score = warpgroup_mma_wait(0, deps=[score])
        if block * BLOCK + BLOCK > length:
            token = block * BLOCK + gl.arange(0, BLOCK, gl.SliceLayout(0, scores))
            score = gl.where(gl.expand_dims(token, 0) < gl.expand_dims(limit, 1), score, float("-inf"))
        new_top = gl.maximum(top, gl.max(score, 1) * factor)
        base = gl.where(new_top == float("-inf"), 0.0, new_top)
        decay = gl.exp2(top - base)
        weight = gl.exp2(score * factor - gl.expand_dims(base, 1))
        total = total * decay + gl.sum(weight, 1)
        top = new_top
        mbarrier.wait(taken, turn ^ 1)
        p.store(weight.to(gl.bfloat16))
        shared_row.store(decay)
        fence_async_shared()
        mbarrier.arrive(handed)
        acc = acc * gl.expand_dims(gl.convert_layout(decay, by_value), 1)
        clear_tail(panels, slot * 2, block, end, BLOCK, PANELS)
        product = warpgroup_mma(p, k.index(slot * 2), acc, is_async=True)
        acc = warpgroup_mma_wait(0, deps=[product])
        mbarrier.arrive(empty.index(slot * 2))
        phase = phase ^ slot
        slot = 1 - slot
        turn = turn ^ 1
    share = 1.0 / gl.where(total > 0, total, 1.0)
    mbarrier.wait(taken, turn ^ 1)
    shared_row.store(share)
    mbarrier.arrive(handed)
    log = gl.where(total > 0, top + gl.log2(gl.where(total > 0, total, 1.0)), float("-inf"))
    acc = acc * gl.expand_dims(gl.convert_layout(share, by_value), 1)
    log = gl.convert_layout(log, by_value)
    _put(out, lse, acc, log, first_query, time * heads, row, split, splits, 0, RANK, QUERIES, SPLIT, wide)


@gluon.jit
def _multiply(
    k, panels, p, shared_row, full, empty, handed, taken, out, lse,
    time, heads, row, first_query, split, splits, end, first, last,
    RANK: gl.constexpr, QUERIES: gl.constexpr, BLOCK: gl.constexpr, PANELS: gl.constexpr, SPLIT: gl.constexpr,
):  # fmt: skip
    """Second warpgroup: right half of the values."""
    HALF: gl.constexpr = RANK // 2
    wide: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, HALF, 16])
    by_value: gl.constexpr = gl.SliceLayout(1, wide)
    acc = gl.zeros([QUERIES, HALF], gl.float32, wide)
    slot = first * 0
    phase = first * 0
    turn = first * 0
    for block in range(first, last):
        mbarrier.wait(full.index(slot * 2 + 1), phase)
        clear_tail(panels, slot * 2 + 1, block, end, BLOCK, PANELS)
        mbarrier.wait(handed, turn)
        acc = acc * gl.expand_dims(shared_row.load(by_value), 1)
        product = warpgroup_mma(p, k.index(slot * 2 + 1), acc, is_async=True)
        acc = warpgroup_mma_wait(0, deps=[product])
        mbarrier.arrive(taken)
        mbarrier.arrive(empty.index(slot * 2 + 1))
        phase = phase ^ slot
        slot = 1 - slot
        turn = turn ^ 1
    mbarrier.wait(handed, turn)
    share = shared_row.load(by_value)
    acc = acc * gl.expand_dims(share, 1)
    _put(out, lse, acc, share, first_query, time * heads, row, split, splits, HALF, RANK, QUERIES, SPLIT, wide)


@gluon.jit
def attend_many(
    q, halves, ropes, table, length, out, lse,
    factor, time, heads, query_blocks, splits, row_stride,
    PAGE: gl.constexpr, RANK: gl.constexpr, ROPE: gl.constexpr, QUERIES: gl.constexpr, BLOCK: gl.constexpr,
    PANEL: gl.constexpr, SPLIT: gl.constexpr,
):  # fmt: skip
    """64 queries of one row of the batch against one split of its tokens; neighbours read the same tiles."""
    HALF: gl.constexpr = RANK // 2
    PANELS: gl.constexpr = HALF // PANEL
    swizzled: gl.constexpr = gl.NVMMASharedLayout(128, 16, 2)
    first_query = gl.program_id(0) % query_blocks * QUERIES
    split = gl.program_id(0) // query_blocks
    row = gl.program_id(1)
    length_here = gl.load(length + row)
    end, first, last = split_blocks(length_here, split, splits, time, BLOCK)

    q_halves = gl.allocate_shared_memory(gl.bfloat16, [2, QUERIES, HALF], swizzled)
    q_rope = gl.allocate_shared_memory(gl.bfloat16, [QUERIES, ROPE], ropes.layout)
    panels = gl.allocate_shared_memory(gl.bfloat16, [4 * PANELS, BLOCK, PANEL], swizzled)
    k = panels._reinterpret(gl.bfloat16, [4, BLOCK, HALF], swizzled)
    k_rope = gl.allocate_shared_memory(gl.bfloat16, [2, BLOCK, ROPE], ropes.layout)
    p = gl.allocate_shared_memory(gl.bfloat16, [QUERIES, BLOCK], swizzled)
    shared_row = gl.allocate_shared_memory(gl.float32, [QUERIES], gl.SwizzledSharedLayout(1, 1, 1, [0]))
    full = gl.allocate_shared_memory(gl.int64, [4, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [4, 1], mbarrier.MBarrierLayout())
    handed = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    taken = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    for i in gl.static_range(4):
        mbarrier.init(full.index(i), count=1)
        mbarrier.init(empty.index(i), count=1)
    mbarrier.init(handed, count=1)
    mbarrier.init(taken, count=1)
    fence_async_shared()

    gl.warp_specialize([
        (_score_and_multiply, (q, q_halves, q_rope, k, k_rope, panels, p, shared_row, full, empty, handed, taken, out,
                               lse, length_here, factor, time, heads, row, first_query, split, splits, end, first, last,
                               RANK, ROPE, QUERIES, BLOCK, PANELS, SPLIT)),
        (_multiply, (k, panels, p, shared_row, full, empty, handed, taken, out, lse,
                     time, heads, row, first_query, split, splits, end, first, last,
                     RANK, QUERIES, BLOCK, PANELS, SPLIT)),
        (copy_tiles, (halves, ropes, k, k_rope, full, empty, table + row * row_stride, first, last,
                      PAGE, RANK, ROPE, BLOCK)),
    ], [4, 1], [232, 24])  # fmt: skip


def attention_of_many(
    q: Tensor, pages: Tensor, table: Tensor, length: Tensor, rank: int, scale_log2: float, splits: int | None = None
) -> Tensor:
    """For what `attention_tiles.can_copy`; `splits` parts a context if given."""
    batch, time, heads, width = q.shape
    query_blocks = triton.cdiv(time * heads, QUERIES)
    if splits is None:
        blocks = triton.cdiv(table.shape[1] * pages.shape[1], BLOCK)
        splits = choose_splits(batch * query_blocks, blocks, processors(q.device), START, batch * time * heads)
    parts = Parts(q, rank, splits)
    attend_many[(query_blocks * splits, batch)](
        q.contiguous(),
        *describe_pages(pages, rank),
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
        ROPE=width - rank,
        QUERIES=QUERIES,
        BLOCK=BLOCK,
        PANEL=PANEL,
        SPLIT=splits > 1,
        num_warps=4,
        maxnreg=168,
    )
    return parts.join()
