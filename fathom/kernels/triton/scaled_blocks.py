"""Strips times 128 x 128 blocks on Hopper, for one matrix or one per group of rows.

Tiles have 64 rows per group of warps. With two groups (128 rows) each takes two strips of the inner width per turn and
promotes the first while the tensor cores work on the second; with three (192 rows) the groups hide one another's
promotion. Groups of rows are walked on the device, so no offset ever reaches the host.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma, warpgroup_mma_wait

from fathom.kernels.triton.ring import following, open_barriers, put_tile, start_product, tile_at


@gluon.jit
def _seek(offsets, t, group, base, first, last, tiles_across, groups, TALL: gl.constexpr):
    """Move on to the group of rows whose tiles hold t; group == groups lies behind the last."""
    tiles = gl.cdiv(last - first, TALL) * tiles_across
    while (group < groups) & (t >= base + tiles):
        base += tiles
        group += 1
        first = last
        last = gl.load(offsets + min(group + 1, groups))
        tiles = gl.cdiv(last - first, TALL) * tiles_across
    return group, base, first, last


@gluon.jit
def _produce(
    descs, shared, barriers, work, scales_stride, READERS: gl.constexpr, STAGES: gl.constexpr, BAND: gl.constexpr
):  # fmt: skip
    """Fill stages, tile after tile."""
    full, empty = barriers
    offsets, N, K, groups, processors = work
    a_desc, b_desc, s_desc, q_desc = descs
    a_s, b_s, s_s, q_s = shared
    TALL: gl.constexpr = 64 * READERS
    tiles_across = gl.cdiv(N, 128)
    strips = gl.cdiv(K, 128)
    t = gl.program_id(0)
    slot, phase = t * 0, t * 0 + 1
    group, base, first, last = _seek(
        offsets, t, t * 0, t * 0, gl.load(offsets), gl.load(offsets + 1), tiles_across, groups, TALL
    )
    while group < groups:
        down, across = tile_at(t - base, gl.cdiv(last - first, TALL), tiles_across, BAND)
        row = first + down * TALL
        scale_row = ((first + 3 * group) & -4) + down * TALL  # see `align_scales`
        block = (group * tiles_across + across) * strips
        for k in range(strips):
            bar = full.index(slot)
            mbarrier.wait(empty.index(slot), phase)
            mbarrier.expect(bar, TALL * (128 + 4) + 128 * 128 + 16)
            for w in gl.static_range(READERS):
                tma.async_copy_global_to_shared(a_desc, [row + w * 64, k * 128], bar, a_s.index(slot * READERS + w))
                tma.async_copy_global_to_shared(
                    s_desc, [k * scales_stride + scale_row + w * 64], bar, s_s.index(slot * READERS + w)
                )
            tma.async_copy_global_to_shared(b_desc, [group * N + across * 128, k * 128], bar, b_s.index(slot))
            # four scales at a time: the copy engine begins at multiples of 16 bytes
            tma.async_copy_global_to_shared(q_desc, [(block + k) & -4], bar, q_s.index(slot * 8))
            slot, phase = following(slot, phase, STAGES)
        t += processors
        group, base, first, last = _seek(offsets, t, group, base, first, last, tiles_across, groups, TALL)


@gluon.jit
def _scale(s_s, q_s, slot, block, READER: gl.constexpr, READERS: gl.constexpr, layout: gl.constexpr):
    """What the rows of this group of warps are multiplied by after this strip."""
    weight = q_s.index(slot * 32 + (block & 3)).load(layout)
    return gl.expand_dims(s_s.index(slot * READERS + READER).load(layout) * weight, 1)


@gluon.jit
def _sum_strips(
    shared, full, empty, strips, block, slot, phase,
    READER: gl.constexpr, READERS: gl.constexpr, STAGES: gl.constexpr, mma: gl.constexpr,
):  # fmt: skip
    """The 64 x 128 sum of one tile's strips in float32, and the stage that comes after."""
    a_s, b_s, s_s, q_s = shared
    rows: gl.constexpr = gl.SliceLayout(1, mma)
    zero = gl.zeros([64, 128], gl.float32, mma)
    total = gl.zeros([64, 128], gl.float32, mma)
    singles = strips
    if READERS == 2:
        singles = strips % 2
        # no product may be in flight at the end of a turn: the compiler would wait for each at once
        for pair in range(strips // 2):
            mbarrier.wait(full.index(slot), phase)
            first = start_product(a_s.index(slot * READERS + READER), b_s.index(slot), zero)
            first_scale = _scale(s_s, q_s, slot, block + 2 * pair, READER, READERS, rows)
            first_slot = slot
            slot, phase = following(slot, phase, STAGES)
            mbarrier.wait(full.index(slot), phase)
            second = start_product(a_s.index(slot * READERS + READER), b_s.index(slot), zero)
            second_scale = _scale(s_s, q_s, slot, block + 2 * pair + 1, READER, READERS, rows)
            done = warpgroup_mma_wait(1, deps=[first])
            mbarrier.arrive(empty.index(first_slot), count=1)
            total += done * first_scale
            done = warpgroup_mma_wait(0, deps=[second])
            mbarrier.arrive(empty.index(slot), count=1)
            total += done * second_scale
            slot, phase = following(slot, phase, STAGES)
    for single in range(strips - singles, strips):
        mbarrier.wait(full.index(slot), phase)
        started = start_product(a_s.index(slot * READERS + READER), b_s.index(slot), zero)
        scale = _scale(s_s, q_s, slot, block + single, READER, READERS, rows)
        done = warpgroup_mma_wait(0, deps=[started])
        mbarrier.arrive(empty.index(slot), count=1)
        total += done * scale
        slot, phase = following(slot, phase, STAGES)
    return total, slot, phase


@gluon.jit
def _let_pass(full, empty, strips, slot, phase, STAGES: gl.constexpr):
    """Hand every stage of a tile back unread."""
    for _ in range(strips):
        mbarrier.wait(full.index(slot), phase)
        mbarrier.arrive(empty.index(slot), count=1)
        slot, phase = following(slot, phase, STAGES)
    return slot, phase


@gluon.jit
def _consume(
    out, shared, barriers, work,
    READER: gl.constexpr, READERS: gl.constexpr, STAGES: gl.constexpr, BAND: gl.constexpr,
):  # fmt: skip
    """One group of warps: its 64 rows of every tile that comes by."""
    out_desc, out_ptr, out_s, out_stride = out
    full, empty = barriers
    offsets, N, K, groups, processors = work
    TALL: gl.constexpr = 64 * READERS
    mma: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 128, 32])
    tiles_across = gl.cdiv(N, 128)
    strips = gl.cdiv(K, 128)
    staging = out_s.index(READER)
    t = gl.program_id(0)
    slot, phase = t * 0, t * 0
    group, base, first, last = _seek(
        offsets, t, t * 0, t * 0, gl.load(offsets), gl.load(offsets + 1), tiles_across, groups, TALL
    )
    while group < groups:
        down, across = tile_at(t - base, gl.cdiv(last - first, TALL), tiles_across, BAND)
        block = (group * tiles_across + across) * strips
        row = first + down * TALL + READER * 64
        if row < last:
            total, slot, phase = _sum_strips(
                shared, full, empty, strips, block, slot, phase, READER, READERS, STAGES, mma
            )
            put_tile(out_desc, out_ptr, staging, total.to(out_desc.dtype), row, last, across * 128, N, out_stride, 64)
        else:  # the group ends above these rows: the tensor cores belong to the others
            slot, phase = _let_pass(full, empty, strips, slot, phase, STAGES)
        t += processors
        group, base, first, last = _seek(offsets, t, group, base, first, last, tiles_across, groups, TALL)
    tma.store_wait(0)


@gluon.jit
def blocks_kernel(
    a_desc, b_desc, s_desc, q_desc, out_desc, out_ptr, offsets, N, K, groups, processors, scales_stride, out_stride,
    READERS: gl.constexpr, STAGES: gl.constexpr, BAND: gl.constexpr, REGISTERS: gl.constexpr,
):  # fmt: skip
    """out[rows of group e] = (a * its strips' scales) @ (b[e] * its blocks' scales).T"""
    plain: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])
    a_s = gl.allocate_shared_memory(gl.float8e4nv, [STAGES * READERS, 64, 128], a_desc.layout)
    b_s = gl.allocate_shared_memory(gl.float8e4nv, [STAGES, 128, 128], b_desc.layout)
    s_s = gl.allocate_shared_memory(gl.float32, [STAGES * READERS, 64], s_desc.layout)
    q_s = gl.allocate_shared_memory(gl.float32, [STAGES * 8, 4], q_desc.layout)  # 128 bytes a stage
    out_s = gl.allocate_shared_memory(out_desc.dtype, [READERS, 64, 128], out_desc.layout)
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    open_barriers(full, empty, STAGES, READERS)
    descs = (a_desc, b_desc, s_desc, q_desc)
    filled = (a_s, b_s, s_s, q_s)
    read = (a_s, b_s, s_s, q_s._reinterpret(gl.float32, [STAGES * 32, 1], plain))
    barriers = (full, empty)
    out = (out_desc, out_ptr, out_s, out_stride)
    work = (offsets, N, K, groups, processors)
    if READERS == 2:
        gl.warp_specialize(
            [
                (_consume, (out, read, barriers, work, 0, READERS, STAGES, BAND)),
                (_consume, (out, read, barriers, work, 1, READERS, STAGES, BAND)),
                (_produce, (descs, filled, barriers, work, scales_stride, READERS, STAGES, BAND)),
            ],
            [4, 1],
            [REGISTERS, 24],
        )
    else:
        gl.warp_specialize(
            [
                (_consume, (out, read, barriers, work, 0, READERS, STAGES, BAND)),
                (_consume, (out, read, barriers, work, 1, READERS, STAGES, BAND)),
                (_consume, (out, read, barriers, work, 2, READERS, STAGES, BAND)),
                (_produce, (descs, filled, barriers, work, scales_stride, READERS, STAGES, BAND)),
            ],
            [4, 4, 1],
            [REGISTERS, REGISTERS, 24],
        )
