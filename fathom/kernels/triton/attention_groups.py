"""Grouped-query attention over pages of keys and values: decoding of Llama- and Qwen-shaped models.

The queries of a group share a read of its keys. Scores stand upside down, tokens by queries, as in `attention`.
"""

import triton
import triton.language as tl
from torch import Tensor

from fathom.kernels.triton.attention_splits import Parts, choose_splits, processors

BLOCK = 64  # tokens of a tile
LOG2E = 1.4426950408889634
RESIDENT = 8  # programs that a multiprocessor runs at once
START = 2.0  # time of a program outside its loop, in tiles


@triton.jit
def _attend(
    q, pages, table, length, out, lse,
    factor, time, splits, row_stride,
    HEADS: tl.constexpr, GROUPS: tl.constexpr, SIZE: tl.constexpr, PAGE: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, QUERIES: tl.constexpr, BLOCK: tl.constexpr,
    PRECISION: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """QUERIES queries of one group of one row against one split of its tokens."""
    SHARE: tl.constexpr = HEADS // GROUPS
    split = tl.program_id(0) % splits
    first_query = tl.program_id(0) // splits * QUERIES
    group = tl.program_id(1) % GROUPS
    row = tl.program_id(1) // GROUPS

    length_here = tl.load(length + row)
    end = tl.where(length_here > 0, length_here + time - 1, 0)  # of the tokens that the last query sees
    blocks = tl.cdiv(end, BLOCK)
    first = split * blocks // splits
    last = (split + 1) * blocks // splits

    query = first_query + tl.arange(0, QUERIES)
    inside = query < time * SHARE
    limit = length_here + query // SHARE
    head = ((row * time + query // SHARE) * HEADS + group * SHARE + query % SHARE).to(tl.int64)
    d = tl.arange(0, BLOCK_SIZE)
    part = d < SIZE
    asked = tl.load(q + head[None, :] * SIZE + d[:, None], inside[None, :] & part[:, None], 0.0)  # (D, Q)

    top = tl.full([QUERIES], float("-inf"), tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    acc = tl.zeros([BLOCK_SIZE, QUERIES], tl.float32)
    for block in tl.range(first, last):
        token = block * BLOCK + tl.arange(0, BLOCK)
        seen = token < end
        page = tl.load(table + row * row_stride + token // PAGE, seen, 0).to(tl.int64)
        entry = pages + ((page * PAGE + token % PAGE) * (2 * GROUPS * SIZE) + group * SIZE)[:, None] + d[None, :]
        read = seen[:, None] & part[None, :]
        k = tl.load(entry, read, 0.0)
        v = tl.load(entry + GROUPS * SIZE, read, 0.0)
        score = tl.dot(k, asked, input_precision=PRECISION)
        score = tl.where(token[:, None] < limit[None, :], score * factor, float("-inf"))
        new_top = tl.maximum(top, tl.max(score, 0))
        base = tl.where(new_top == float("-inf"), 0.0, new_top)  # a query that sees nothing yet
        decay = tl.exp2(top - base)
        weight = tl.exp2(score - base[None, :])
        total = total * decay + tl.sum(weight, 0)
        acc = tl.dot(tl.trans(v), weight.to(v.dtype), acc * decay[None, :], input_precision=PRECISION)
        top = new_top

    acc = acc / tl.where(total > 0, total, 1.0)[None, :]
    if SPLIT:
        head = head * splits + split
        tl.store(lse + head, tl.where(total > 0, top + tl.log2(total), float("-inf")), inside)
        inside = inside & (last > first)
    tl.store(out + head[None, :] * SIZE + d[:, None], acc.to(out.dtype.element_ty), inside[None, :] & part[:, None])


def paged_grouped_attention(
    q: Tensor, pages: Tensor, table: Tensor, length: Tensor, scale: float, splits: int | None = None
) -> Tensor:
    """`fathom.kernels.attention.paged_grouped_attention` on a GPU; every launch follows from shapes alone."""
    batch, time, heads, size = q.shape
    groups, exact = pages.shape[2] // (2 * size), q.element_size() == 4
    queries = max(16, min(32, triton.next_power_of_2(time * heads // groups)))
    query_blocks, block = triton.cdiv(time * heads // groups, queries), 16 if exact else BLOCK
    if splits is None:
        blocks = triton.cdiv(table.shape[1] * pages.shape[1], block)
        slots = RESIDENT * processors(q.device)
        splits = choose_splits(batch * groups * query_blocks, blocks, slots, START, batch * time * heads)
    parts = Parts(q, size, splits)
    _attend[(splits * query_blocks, batch * groups)](
        q.contiguous(), pages, table, length, parts.parts, parts.lse,
        scale * LOG2E, time, splits, table.stride(0),
        HEADS=heads, GROUPS=groups, SIZE=size, PAGE=pages.shape[1],
        BLOCK_SIZE=max(16, triton.next_power_of_2(size)), QUERIES=queries, BLOCK=block,
        PRECISION="ieee" if exact else None, SPLIT=splits > 1, num_warps=4, num_stages=2,
    )  # fmt: skip
    return parts.join()
