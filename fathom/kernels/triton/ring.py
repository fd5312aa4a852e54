"""What Hopper's persistent products share: a ring of shared-memory stages, the order of tiles, the way out.

One warp fills stages by the copy engine while groups of four warps multiply what is there; a pair of barriers per stage
says whose turn it is. Written in Gluon, the dialect of Triton in which layouts, barriers and warps are spelled out.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier, tma, warpgroup_mma


@gluon.jit
def following(slot, phase, STAGES: gl.constexpr):
    """The next stage, and the phase that its barriers are waited for; the phase turns with every round."""
    slot += 1
    wrap = (slot == STAGES).to(gl.int32)
    return slot * (1 - wrap), phase ^ wrap


@gluon.jit
def tile_at(t, tiles_down, tiles_across, BAND: gl.constexpr):
    """Row and column of tile t where tiles go down bands of BAND rows, so that neighbours share what they read."""
    per_band = BAND * tiles_across
    band = t // per_band
    height = min(tiles_down - band * BAND, BAND)
    inner = t % per_band
    return band * BAND + inner % height, inner // height


@gluon.jit
def open_barriers(full, empty, STAGES: gl.constexpr, READERS: gl.constexpr):
    """Fresh barriers: a stage is full when its bytes have come, empty when every reader has let go."""
    for stage in gl.static_range(STAGES):
        mbarrier.init(full.index(stage), count=1)
        mbarrier.init(empty.index(stage), count=READERS)
    fence_async_shared()


@gluon.jit
def start_product(a, b, zero):
    """Set 64 x N x 128 going on the tensor cores, from a sum of zero."""
    return warpgroup_mma(a, b.permute((1, 0)), zero, use_acc=False, is_async=True)


@gluon.jit
def put_tile(out_desc, out_ptr, staging, tile, row, row_end, column, width, stride, HEIGHT: gl.constexpr):
    """Write a tile of HEIGHT rows at (row, column): by the copy engine, or by rows where a group ends in it."""
    if row + HEIGHT <= row_end:
        tma.store_wait(0)
        staging.store(tile)
        fence_async_shared()
        tma.async_copy_shared_to_global(out_desc, [row, column], staging)
    elif row < row_end:
        # through shared memory, so that every thread writes 16 bytes of a row
        VECTOR: gl.constexpr = 128 // tile.dtype.primitive_bitwidth
        LANES: gl.constexpr = 128 // VECTOR
        by_rows: gl.constexpr = gl.BlockedLayout([1, VECTOR], [32 // LANES, LANES], [4, 1], [1, 0])
        tma.store_wait(0)
        staging.store(tile)
        r = row + gl.arange(0, HEIGHT, gl.SliceLayout(1, by_rows))
        c = column + gl.arange(0, 128, gl.SliceLayout(0, by_rows))
        at = gl.expand_dims(r.to(gl.int64) * stride, 1) + gl.expand_dims(c, 0)
        inside = gl.expand_dims(r < row_end, 1) & gl.expand_dims(c < width, 0)
        gl.store(out_ptr + at, staging.load(by_rows), mask=inside)
