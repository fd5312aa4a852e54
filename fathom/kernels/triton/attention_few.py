"""Absorbed attention on Hopper for up to 32 queries a row, where the reads are the limit.

Scores stand upside down, tokens by queries: a tile is the large operand of both products, once as it lies and once
transposed, and no row of a product is wasted on queries that are not there. One warp copies, four multiply.
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

QUERIES = (16, 32)  # columns of a product
START = 2.0  # time of a program outside its loop, in tiles


@gluon.jit
def weigh(score, top, total, factor):
    """Softmax as far as this tile goes: its weights (tokens, queries), the decay of all before, sums, largest score."""
    new_top = gl.maximum(top, gl.max(score, 0) * factor)
    base = gl.where(new_top == float("-inf"), 0.0, new_top)  # a query that sees nothing yet
    decay = gl.expand_dims(gl.exp2(top - base), 0)
    weight = gl.exp2(score * factor - gl.expand_dims(base, 0))
    return weight, decay, total * decay + weight, new_top


@gluon.jit
def put_columns(
    out, lse, left, right, total, top, query, row, queries, split, splits,
    RANK: gl.constexpr, SPLIT: gl.constexpr, layout: gl.constexpr,
):  # fmt: skip
    """The results (RANK / 2, queries) of both halves, divided by the sum of all weights."""
    whole = gl.sum(total, 0)
    share = gl.expand_dims(1.0 / gl.where(whole > 0, whole, 1.0), 0)
    place = (row * queries + query).to(gl.int64)
    inside = query < queries
    if SPLIT:
        place = place * splits + split
        log = gl.where(whole > 0, top + gl.log2(gl.where(whole > 0, whole, 1.0)), float("-inf"))
        gl.store(lse + place, log, mask=inside)
    column = gl.arange(0, RANK // 2, gl.SliceLayout(1, layout))
    at = out + gl.expand_dims(place * RANK, 0) + gl.expand_dims(column, 1)
    gl.store(at, (left * share).to(out.dtype.element_ty), mask=gl.expand_dims(inside, 0))
    gl.store(at + RANK // 2, (right * share).to(out.dtype.element_ty), mask=gl.expand_dims(inside, 0))


@gluon.jit
def _attend_tiles(
    q, q_halves, q_rope, k, k_rope, panels, p, full, empty, out, lse, length, factor,
    time, heads, row, first_query, split, splits, end, first, last,
    RANK: gl.constexpr, ROPE: gl.constexpr, QUERIES: gl.constexpr, BLOCK: gl.constexpr, PANELS: gl.constexpr,
    SPLIT: gl.constexpr,
):  # fmt: skip
    """The multiplying warps: scores (BLOCK, QUERIES), results (RANK / 2, QUERIES) of the left and the right half."""
    HALF: gl.constexpr = RANK // 2
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, QUERIES, 16])
    by_query: gl.constexpr = gl.SliceLayout(0, layout)
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
        mbarrier.wait(full.index(slot * 2), phase)
        score = warpgroup_mma(
            k.index(slot * 2), q_halves.index(0).permute((1, 0)), nothing, use_acc=False, is_async=True
        )
        score = warpgroup_mma(k_rope.index(slot), q_rope.permute((1, 0)), score, is_async=True)
        mbarrier.wait(full.index(slot * 2 + 1), phase)
        score = warpgroup_mma(k.index(slot * 2 + 1), q_halves.index(1).permute((1, 0)), score, is_async=True)
        score = warpgroup_mma_wait(0, deps=[score])
        if block * BLOCK + BLOCK > length:
            token = block * BLOCK + gl.arange(0, BLOCK, gl.SliceLayout(1, layout))
            score = gl.where(gl.expand_dims(token, 1) < gl.expand_dims(limit, 0), score, float("-inf"))
            clear_tail(panels, slot * 2, block, end, BLOCK, PANELS)
            clear_tail(panels, slot * 2 + 1, block, end, BLOCK, PANELS)
        weight, decay, total, top = weigh(score, top, total, factor)
        p.store(weight.to(gl.bfloat16))
        fence_async_shared()
        gl.thread_barrier()
        left_next = warpgroup_mma(k.index(slot * 2).permute((1, 0)), p, left * decay, is_async=True)
        right_next = warpgroup_mma(k.index(slot * 2 + 1).permute((1, 0)), p, right * decay, is_async=True)
        left, right = warpgroup_mma_wait(0, deps=[left_next, right_next])
        mbarrier.arrive(empty.index(slot * 2))
        mbarrier.arrive(empty.index(slot * 2 + 1))
        phase = phase ^ slot
        slot = 1 - slot
    put_columns(out, lse, left, right, total, top, query, row, queries, split, splits, RANK, SPLIT, layout)


@gluon.jit
def attend_few(
    q, halves, ropes, table, length, out, lse,
    factor, time, heads, query_blocks, splits, row_stride,
    PAGE: gl.constexpr, RANK: gl.constexpr, ROPE: gl.constexpr, QUERIES: gl.constexpr, BLOCK: gl.constexpr,
    PANEL: gl.constexpr, SPLIT: gl.constexpr,
):  # fmt: skip
    """QUERIES queries of one row of the batch against one split of its tokens."""
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
    p = gl.allocate_shared_memory(gl.bfloat16, [BLOCK, QUERIES], gl.NVMMASharedLayout(2 * QUERIES, 16, 2))
    full = gl.allocate_shared_memory(gl.int64, [4, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [4, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(4):
        mbarrier.init(full.index(i), count=1)
        mbarrier.init(empty.index(i), count=1)
    fence_async_shared()

    gl.warp_specialize([
        (_attend_tiles, (q, q_halves, q_rope, k, k_rope, panels, p, full, empty, out, lse, length_here, factor,
                         time, heads, row, first_query, split, splits, end, first, last,
                         RANK, ROPE, QUERIES, BLOCK, PANELS, SPLIT)),
        (copy_tiles, (halves, ropes, k, k_rope, full, empty, table + row * row_stride, first, last,
                      PAGE, RANK, ROPE, BLOCK)),
    ], [1], [24])  # fmt: skip


def attention_of_few(
    q: Tensor, pages: Tensor, table: Tensor, length: Tensor, rank: int, scale_log2: float, splits: int | None = None
) -> Tensor:
    """For what `attention_tiles.can_copy`; `splits` parts a context if given."""
    batch, time, heads, width = q.shape
    columns = min(QUERIES[-1], max(QUERIES[0], triton.next_power_of_2(time * heads)))
    query_blocks = triton.cdiv(time * heads, columns)
    if splits is None:
        blocks = triton.cdiv(table.shape[1] * pages.shape[1], BLOCK)
        resident = 1 if rank > 256 else 2
        splits = choose_splits(
            batch * query_blocks, blocks, resident * processors(q.device), START, batch * time * heads
        )
    parts = Parts(q, rank, splits)
    attend_few[(query_blocks * splits, batch)](
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
        QUERIES=columns,
        BLOCK=BLOCK,
        PANEL=PANEL,
        SPLIT=splits > 1,
        num_warps=4,
        maxnreg=128 if rank * columns <= 512 * 16 else 168,  # two programs a multiprocessor need the former
    )
    return parts.join()
