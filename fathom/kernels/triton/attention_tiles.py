"""What the two Hopper kernels of attention share: tiles of 64 tokens that one warp copies through a ring of two.

A tile lies in shared memory as its left half, its right half and its rotated keys. The halves are also the values, so
each is handed back on its own. Written in Gluon, as the work of the warps differs.
"""

import torch
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier, tma
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

BLOCK = 64  # tokens of a tile
PANEL = 64  # columns in 128 bytes, the widest swizzle
RANKS = (128, 256, 512)  # whose halves are whole panels
ROPES = (16, 32, 64)


def can_copy(q: Tensor, pages: Tensor, rank: int) -> bool:
    """Whether such tiles can be had: on Hopper, in BF16, of pages that hold whole tiles."""
    types = q.dtype == pages.dtype == torch.bfloat16
    return types and rank in RANKS and q.shape[3] - rank in ROPES and pages.shape[1] % BLOCK == 0 and on_hopper(q)


def on_hopper(x: Tensor) -> bool:
    """Whether warpgroups multiply what lies in shared memory."""
    return x.is_cuda and torch.cuda.get_device_capability(x.device)[0] == 9


def describe_pages(pages: Tensor, rank: int) -> tuple[TensorDescriptor, TensorDescriptor]:
    """Half a latent of each token of a tile; its rotated keys."""
    flat, rope = pages.view(-1, pages.shape[2]), pages.shape[2] - rank
    return (
        TensorDescriptor.from_tensor(flat, [BLOCK, rank // 2], gl.NVMMASharedLayout(128, 16, 2)),
        TensorDescriptor.from_tensor(flat, [BLOCK, rope], gl.NVMMASharedLayout(2 * rope, 16, 2)),
    )


@gluon.jit
def split_blocks(length, split, splits, time, BLOCK: gl.constexpr):
    """End of the tokens that the last query sees, and the first and last tile of one split."""
    end = gl.where(length > 0, length + time - 1, 0)
    blocks = gl.cdiv(end, BLOCK)
    return end, split * blocks // splits, (split + 1) * blocks // splits


@gluon.jit
def load_queries(
    q, q_halves, q_rope, row, first_query, queries,
    RANK: gl.constexpr, ROPE: gl.constexpr, QUERIES: gl.constexpr,
):  # fmt: skip
    """Queries of one row of the batch into shared memory, as (2, QUERIES, RANK / 2) and (QUERIES, ROPE)."""
    HALF: gl.constexpr = RANK // 2
    wide: gl.constexpr = gl.BlockedLayout([1, 8], [1, 32], [4, 1], [1, 0])
    narrow: gl.constexpr = gl.BlockedLayout([1, 8], [256 // ROPE, ROPE // 8], [4, 1], [1, 0])
    query = first_query + gl.arange(0, QUERIES, gl.SliceLayout(1, wide))
    at = q + gl.expand_dims((row * queries + query).to(gl.int64) * (RANK + ROPE), 1)
    inside = gl.expand_dims(query < queries, 1)
    for half in gl.static_range(2):
        column = half * HALF + gl.arange(0, HALF, gl.SliceLayout(0, wide))
        q_halves.index(half).store(gl.load(at + gl.expand_dims(column, 0), mask=inside, other=0.0))
    query = first_query + gl.arange(0, QUERIES, gl.SliceLayout(1, narrow))
    at = q + gl.expand_dims((row * queries + query).to(gl.int64) * (RANK + ROPE), 1)
    column = RANK + gl.arange(0, ROPE, gl.SliceLayout(0, narrow))
    q_rope.store(gl.load(at + gl.expand_dims(column, 0), mask=gl.expand_dims(query < queries, 1), other=0.0))
    fence_async_shared()


@gluon.jit
def copy_tiles(
    halves, ropes, k, k_rope, full, empty, table, first, last,
    PAGE: gl.constexpr, RANK: gl.constexpr, ROPE: gl.constexpr, BLOCK: gl.constexpr,
):  # fmt: skip
    """The copying warp. The left half and the rotated keys arrive at one barrier, the right half at another."""
    HALF: gl.constexpr = RANK // 2
    slot = first * 0
    phase = first * 0 + 1  # a fresh barrier counts as passed in phase 1: both slots begin empty
    for block in range(first, last):
        place = gl.load(table + block * BLOCK // PAGE) * PAGE + block * BLOCK % PAGE
        left, right = slot * 2, slot * 2 + 1
        mbarrier.wait(empty.index(left), phase)
        mbarrier.expect(full.index(left), BLOCK * (HALF + ROPE) * 2)
        tma.async_copy_global_to_shared(halves, [place, 0], full.index(left), k.index(left))
        tma.async_copy_global_to_shared(ropes, [place, RANK], full.index(left), k_rope.index(slot))
        mbarrier.wait(empty.index(right), phase)
        mbarrier.expect(full.index(right), BLOCK * HALF * 2)
        tma.async_copy_global_to_shared(halves, [place, HALF], full.index(right), k.index(right))
        phase = phase ^ slot
        slot = 1 - slot


@gluon.jit
def clear_tail(panels, half, block, end, BLOCK: gl.constexpr, COUNT: gl.constexpr):
    """Zeros for the values behind the last token: a weight of 0 times whatever lies there must be 0."""
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0])
    token = block * BLOCK + gl.arange(0, BLOCK, gl.SliceLayout(1, layout))
    if block * BLOCK + BLOCK > end:
        for panel in gl.static_range(COUNT):
            tile = panels.index(half * COUNT + panel)
            old = tile.load(layout)
            tile.store(gl.where(gl.expand_dims(token < end, 1), old, gl.zeros_like(old)))
        fence_async_shared()
