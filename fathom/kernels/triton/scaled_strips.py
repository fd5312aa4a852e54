"""Strips times strips on Hopper, one sum per group: the gradient of every expert's weight in one launch.

Both factors lie transposed, their inner width the rows of all groups one after the other, each group beginning at a
strip of 128. A group without rows gets a sum of zero.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma, warpgroup_mma_wait

from fathom.kernels.triton.ring import following, open_barriers, put_tile, start_product, tile_at


@gluon.jit
def _walk(offsets, group, at, strip, strips):
    """From group `at`, which begins at `strip` and has `strips`, on to `group`."""
    while at < group:
        strip += strips
        at += 1
        strips = gl.cdiv(gl.load(offsets + at + 1) - gl.load(offsets + at), 128)
    return at, strip, strips


@gluon.jit
def _produce(
    descs, shared, barriers, work, a_scales_stride, b_scales_stride, STAGES: gl.constexpr, BAND: gl.constexpr
):  # fmt: skip
    """Fill stages, tile after tile."""
    full, empty = barriers
    offsets, M, N, groups, processors = work
    a_desc, b_desc, s_desc, q_desc = descs
    a_s, b_s, s_s, q_s = shared
    tiles_down, tiles_across = gl.cdiv(M, 128), gl.cdiv(N, 128)
    tiles = tiles_down * tiles_across
    t = gl.program_id(0)
    slot, phase = t * 0, t * 0 + 1
    at, strip, strips = t * 0, t * 0, gl.cdiv(gl.load(offsets + 1) - gl.load(offsets), 128)
    while t < groups * tiles:
        at, strip, strips = _walk(offsets, t // tiles, at, strip, strips)
        down, across = tile_at(t % tiles, tiles_down, tiles_across, BAND)
        for k in range(strip, strip + strips):
            bar = full.index(slot)
            mbarrier.wait(empty.index(slot), phase)
            mbarrier.expect(bar, 2 * 128 * (128 + 4))
            for w in gl.static_range(2):
                row = down * 128 + w * 64
                tma.async_copy_global_to_shared(a_desc, [row, k * 128], bar, a_s.index(slot * 2 + w))
                tma.async_copy_global_to_shared(s_desc, [k * a_scales_stride + row], bar, s_s.index(slot * 2 + w))
            tma.async_copy_global_to_shared(b_desc, [across * 128, k * 128], bar, b_s.index(slot))
            tma.async_copy_global_to_shared(q_desc, [k * b_scales_stride + across * 128], bar, q_s.index(slot))
            slot, phase = following(slot, phase, STAGES)
        t += processors


@gluon.jit
def _scales(s_s, q_s, slot, READER: gl.constexpr, mma: gl.constexpr):
    """What each place of the tile is multiplied by after this strip."""
    rows = gl.expand_dims(s_s.index(slot * 2 + READER).load(gl.SliceLayout(1, mma)), 1)
    columns = gl.expand_dims(q_s.index(slot).load(gl.SliceLayout(0, mma)), 0)
    return rows * columns


@gluon.jit
def _consume(out, shared, barriers, work, READER: gl.constexpr, STAGES: gl.constexpr, BAND: gl.constexpr):
    """One group of warps: its 64 rows of every tile that comes by."""
    out_desc, out_ptr, out_s, out_stride = out
    full, empty = barriers
    offsets, M, N, groups, processors = work
    a_s, b_s, s_s, q_s = shared
    mma: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 128, 32])
    tiles_down, tiles_across = gl.cdiv(M, 128), gl.cdiv(N, 128)
    tiles = tiles_down * tiles_across
    staging = out_s.index(READER)
    zero = gl.zeros([64, 128], gl.float32, mma)
    t = gl.program_id(0)
    slot, phase = t * 0, t * 0
    at, strip, strips = t * 0, t * 0, gl.cdiv(gl.load(offsets + 1) - gl.load(offsets), 128)
    while t < groups * tiles:
        at, strip, strips = _walk(offsets, t // tiles, at, strip, strips)
        down, across = tile_at(t % tiles, tiles_down, tiles_across, BAND)
        total = gl.zeros([64, 128], gl.float32, mma)
        for _ in range(strips // 2):
            # no product may be in flight at the end of a turn: the compiler would wait for each at once
            mbarrier.wait(full.index(slot), phase)
            first = start_product(a_s.index(slot * 2 + READER), b_s.index(slot), zero)
            first_slot = slot
            slot, phase = following(slot, phase, STAGES)
            mbarrier.wait(full.index(slot), phase)
            second = start_product(a_s.index(slot * 2 + READER), b_s.index(slot), zero)
            done = warpgroup_mma_wait(1, deps=[first])
            total += done * _scales(s_s, q_s, first_slot, READER, mma)
            mbarrier.arrive(empty.index(first_slot), count=1)
            done = warpgroup_mma_wait(0, deps=[second])
            total += done * _scales(s_s, q_s, slot, READER, mma)
            mbarrier.arrive(empty.index(slot), count=1)
            slot, phase = following(slot, phase, STAGES)
        if strips % 2 == 1:
            mbarrier.wait(full.index(slot), phase)
            started = start_product(a_s.index(slot * 2 + READER), b_s.index(slot), zero)
            done = warpgroup_mma_wait(0, deps=[started])
            total += done * _scales(s_s, q_s, slot, READER, mma)
            mbarrier.arrive(empty.index(slot), count=1)
            slot, phase = following(slot, phase, STAGES)
        row = at * M + down * 128 + READER * 64
        put_tile(out_desc, out_ptr, staging, total, row, (at + 1) * M, across * 128, N, out_stride, 64)
        t += processors
    tma.store_wait(0)


@gluon.jit
def strips_kernel(
    a_desc, b_desc, s_desc, q_desc, out_desc, out_ptr, offsets, M, N, groups, processors,
    a_scales_stride, b_scales_stride, out_stride,
    STAGES: gl.constexpr, BAND: gl.constexpr, REGISTERS: gl.constexpr,
):  # fmt: skip
    """out[e] = (a * scales) @ (b * scales).T over the strips of group e"""
    a_s = gl.allocate_shared_memory(gl.float8e4nv, [STAGES * 2, 64, 128], a_desc.layout)
    b_s = gl.allocate_shared_memory(gl.float8e4nv, [STAGES, 128, 128], b_desc.layout)
    s_s = gl.allocate_shared_memory(gl.float32, [STAGES * 2, 64], s_desc.layout)
    q_s = gl.allocate_shared_memory(gl.float32, [STAGES, 128], q_desc.layout)
    out_s = gl.allocate_shared_memory(out_desc.dtype, [2, 64, 128], out_desc.layout)
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    open_barriers(full, empty, STAGES, 2)
    descs = (a_desc, b_desc, s_desc, q_desc)
    shared = (a_s, b_s, s_s, q_s)
    barriers = (full, empty)
    out = (out_desc, out_ptr, out_s, out_stride)
    work = (offsets, M, N, groups, processors)
    gl.warp_specialize(
        [
            (_consume, (out, shared, barriers, work, 0, STAGES, BAND)),
            (_consume, (out, shared, barriers, work, 1, STAGES, BAND)),
            (_produce, (descs, shared, barriers, work, a_scales_stride, b_scales_stride, STAGES, BAND)),
        ],
        [4, 1],
        [REGISTERS, 24],
    )
