"""Absorbed attention over paged latents: the kernel for any shape and type, and the choice between it and Hopper's two.

Scores stand upside down, tokens by queries: the cached tile is then the large operand of both products and is read from
shared memory as it lies, once as keys and once, transposed, as values. Queries of several tokens share that read.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from fathom.kernels.attention import check_pages
from fathom.kernels.dispatch import speaks_gluon
from fathom.kernels.triton.attention_groups import paged_grouped_attention as paged_grouped_attention
from fathom.kernels.triton.attention_splits import Parts, choose_splits, processors

GLUON = speaks_gluon()
LOG2E = math.log2(math.e)
FEW = 32  # queries a row, up to which reads are the limit; the kernel for many multiplies 64 whether there or not
BLOCK = 64  # tokens of a tile: the fewest rows of a warpgroup's product
BLOCK_FLOAT32 = 16  # without tensor cores, registers hold what is multiplied
ROWS = 32  # queries of a program at most
SHARED_BYTES = 227 * 1024  # of a multiprocessor of Hopper
START = 2.0  # time of a program outside its loop, in tiles


@triton.jit
def _attend(
    q, pages, ropes, scales, table, length, out, lse,
    factor, time, heads, splits, row_stride,
    PAGE: tl.constexpr, TOKEN: tl.constexpr, WIDTH: tl.constexpr, RANK: tl.constexpr,
    BLOCK_RANK: tl.constexpr, BLOCK_ROPE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
    PRECISION: tl.constexpr, PACKED: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """ROWS queries of one row of the batch against one split of its tokens.

    A token is TOKEN elements behind the last one in `pages`; `ropes` and `scales` are other views of the same bytes.
    """
    split = tl.program_id(0) % splits
    first_query = tl.program_id(0) // splits * ROWS
    row = tl.program_id(1)
    queries = time * heads

    length_here = tl.load(length + row)
    end = tl.where(length_here > 0, length_here + time - 1, 0)  # of the tokens that the last query sees
    blocks = tl.cdiv(end, BLOCK)
    first = split * blocks // splits
    last = (split + 1) * blocks // splits

    query = first_query + tl.arange(0, ROWS)
    limit = length_here + query // heads
    latent = tl.arange(0, BLOCK_RANK)
    rope = tl.arange(0, BLOCK_ROPE)
    q_row = q + (row * queries + query).to(tl.int64) * WIDTH
    q_latent = tl.load(q_row[None, :] + latent[:, None], (query < queries)[None, :] & (latent < RANK)[:, None], 0.0)
    q_rope = tl.load(
        q_row[None, :] + RANK + rope[:, None], (query < queries)[None, :] & (rope < WIDTH - RANK)[:, None], 0.0
    )

    top = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([BLOCK_RANK, ROWS], tl.float32)
    for block in tl.range(first, last):
        token = block * BLOCK + tl.arange(0, BLOCK)
        seen = token < end
        if PAGE % BLOCK == 0:
            page = tl.load(table + row * row_stride + block * BLOCK // PAGE).to(tl.int64)
            place = page * PAGE + token % PAGE
        else:
            page = tl.load(table + row * row_stride + token // PAGE, seen, 0).to(tl.int64)
            place = page * PAGE + token % PAGE
        k = tl.load(pages + place[:, None] * TOKEN + latent[None, :], seen[:, None] & (latent < RANK)[None, :], 0.0)
        k_rope = tl.load(
            ropes + place[:, None] * (TOKEN // 2 if PACKED else TOKEN) + rope[None, :],
            seen[:, None] & (rope < WIDTH - RANK)[None, :], 0.0,
        )  # fmt: skip
        if PACKED:
            k = k.to(tl.float8e4nv, bitcast=True).to(q.dtype.element_ty)
            k_rope = k_rope.to(q.dtype.element_ty)
            unit = tl.load(scales + place * (TOKEN // 4), seen, 0.0)
            score = tl.dot(k, q_latent, input_precision=PRECISION) * unit[:, None]
            score = tl.dot(k_rope, q_rope, score, input_precision=PRECISION)
        else:
            score = tl.dot(k, q_latent, input_precision=PRECISION)
            score = tl.dot(k_rope, q_rope, score, input_precision=PRECISION)
        score = tl.where(token[:, None] < limit[None, :], score * factor, float("-inf"))
        new_top = tl.maximum(top, tl.max(score, 0))
        base = tl.where(new_top == float("-inf"), 0.0, new_top)  # a query that sees nothing yet
        decay = tl.exp2(top - base)
        weight = tl.exp2(score - base[None, :])
        total = total * decay + tl.sum(weight, 0)
        if PACKED:
            weight *= unit[:, None]
        acc = tl.dot(tl.trans(k), weight.to(k.dtype), acc * decay[None, :], input_precision=PRECISION)
        top = new_top

    acc = acc / tl.where(total > 0, total, 1.0)[None, :]
    inside = query < queries
    place = (row * queries + query).to(tl.int64)
    if SPLIT:
        place = place * splits + split
        tl.store(lse + place, tl.where(total > 0, top + tl.log2(total), float("-inf")), inside)
        inside = inside & (last > first)
    tl.store(out + (place * RANK)[:, None] + latent[None, :], tl.trans(acc).to(out.dtype.element_ty),
             inside[:, None] & (latent < RANK)[None, :])  # fmt: skip


def paged_latent_attention(
    q: Tensor,
    pages: Tensor,
    table: Tensor,
    length: Tensor,
    rank: int,
    scale: float,
    splits: int | None = None,
) -> Tensor:
    """`fathom.kernels.attention.paged_latent_attention` on a GPU.

    Lengths and table are read on the device alone and every launch follows from shapes, so a CUDA graph can hold it.
    The same inputs give the same bits; how a context is cut depends on the batch and on the table's columns, unless
    `splits` says it.
    """
    check_pages(q, pages, table, length, rank)
    args = (q, pages, table, length, rank, scale * LOG2E, splits)
    if not (q.is_cuda and GLUON):  # the interpreter knows no Gluon, and other releases another
        return attention_of_any(*args)
    from fathom.kernels.triton.attention_few import attention_of_few
    from fathom.kernels.triton.attention_many import attention_of_many
    from fathom.kernels.triton.attention_packed import attention_of_packed, can_unpack
    from fathom.kernels.triton.attention_tiles import can_copy

    if can_unpack(q, pages, rank):
        return attention_of_packed(*args)
    if can_copy(q, pages, rank):
        return attention_of_few(*args) if q.shape[1] * q.shape[2] <= FEW else attention_of_many(*args)
    return attention_of_any(*args)


def split_pages(pages: Tensor, rank: int, rope: int) -> tuple[Tensor, Tensor]:
    """Where the first token's rotated key and its scale begin, in numbers of their own; without codes there is none."""
    flat = pages.view(-1)
    if pages.dtype != torch.uint8:
        return flat[rank:], flat
    return flat.view(torch.bfloat16)[rank // 2 :], flat.view(torch.float32)[(rank + 2 * rope) // 4 :]


def attention_of_any(
    q: Tensor, pages: Tensor, table: Tensor, length: Tensor, rank: int, scale_log2: float, splits: int | None = None
) -> Tensor:
    """Any shape and type, at most 32 queries a program; `splits` parts a context if given."""
    batch, time, heads, width = q.shape
    packed, exact = pages.dtype == torch.uint8, q.dtype == torch.float32
    block = BLOCK_FLOAT32 if exact else BLOCK
    rows = 16 if exact else max(16, min(ROWS, triton.next_power_of_2(time * heads)))
    query_blocks = triton.cdiv(time * heads, rows)
    if splits is None:
        tile_bytes = block * pages.shape[2] * pages.element_size()
        resident = max(1, SHARED_BYTES // (2 * tile_bytes + 2 * rows * width + 4096))
        blocks = triton.cdiv(table.shape[1] * pages.shape[1], block)
        splits = choose_splits(
            batch * query_blocks, blocks, resident * processors(q.device), START, batch * time * heads
        )
    parts = Parts(q, rank, splits)
    rope, unit = split_pages(pages, rank, width - rank)
    _attend[(splits * query_blocks, batch)](
        q.contiguous(),
        pages,
        rope,
        unit,
        table,
        length,
        parts.parts,
        parts.lse,
        scale_log2,
        time,
        heads,
        splits,
        table.stride(0),
        PAGE=pages.shape[1],
        TOKEN=pages.shape[2],
        WIDTH=width,
        RANK=rank,
        BLOCK_RANK=max(16, triton.next_power_of_2(rank)),
        BLOCK_ROPE=max(16, triton.next_power_of_2(width - rank)),
        ROWS=rows,
        BLOCK=block,
        PRECISION="ieee" if exact else None,
        PACKED=packed,
        SPLIT=splits > 1,
        num_warps=8 if exact or packed or rows > 16 else 4,
        num_stages=2,
    )
    return parts.join()
