"""The kernels behind quantisation on a GPU.

Rows alone go in wide, low tiles and in plain Triton. Columns go in tiles of 128 x 128 and in Gluon, where it can be
said which thread holds what: each has 8 x 8 numbers, so that it reads 16 bytes of a row at a time and writes 8 bytes of
a column, and nothing passes through shared memory to be transposed.
"""

import triton
import triton.language as tl
from triton.experimental import gluon
from triton.experimental.gluon import language as gl

# Of a tile of 128 x 128 among 256 threads, and the same numbers in the same threads, but in the order of its columns.
TILE = gl.constexpr(gl.BlockedLayout([8, 8], [8, 4], [2, 4], [1, 0]))
TURNED = gl.constexpr(
    gl.DistributedLinearLayout(
        reg_bases=[[0, 1], [0, 2], [0, 4], [1, 0], [2, 0], [4, 0]],
        lane_bases=[[8, 0], [16, 0], [0, 8], [0, 16], [0, 32]],
        warp_bases=[[32, 0], [64, 0], [0, 64]],
        block_bases=[],
        shape=[128, 128],
    )
)


@triton.jit
def by_448(x):
    """x / 448, correctly rounded: one step of correction costs a third of a division."""
    quotient = x * (1 / 448)
    return tl.fma(tl.fma(quotient, -448.0, x), 1 / 448, quotient)


@triton.jit
def reciprocal(x):
    """1 / x, as good as always correctly rounded, by one step of Newton from an approximation."""
    y = 1.0 / x
    return tl.fma(tl.fma(x, -y, 1.0), y, y)


@triton.jit
def scale_of(amax_bits, floor, POWER_OF_TWO: tl.constexpr):
    """The scale for a largest magnitude that comes as the bits of a float32, where a NaN is the largest of all."""
    amax = amax_bits.to(tl.float32, bitcast=True)
    amax = tl.where(amax < floor, floor, amax)
    scale = by_448(amax)
    if POWER_OF_TWO:
        bits = scale.to(tl.int32, bitcast=True)
        rounded = (bits + 0x7FFFFF) & -0x800000
        scale = tl.where(bits < 0x7F800000, rounded, bits).to(tl.float32, bitcast=True)
    return scale


@triton.jit
def magnitude(x):
    """The bits of |x|, which order as the numbers do, NaN above all."""
    return x.to(tl.int32, bitcast=True) & 0x7FFFFFFF


@triton.jit
def rows_kernel(
    x, row_weight, codes, scales, count, width, x_stride, codes_stride, scales_stride, floor,
    TALL: tl.constexpr, SWIGLU: tl.constexpr, WEIGHTED: tl.constexpr, POWER_OF_TWO: tl.constexpr,
):  # fmt: skip
    """One tile of TALL x 128 numbers, or of silu(gate) * up, scaled along its rows."""
    strip, block = tl.program_id(0), tl.program_id(1)
    row = block * TALL + tl.arange(0, TALL)
    column = strip * 128 + tl.arange(0, 128)
    inside = (row < count)[:, None] & (column < width)[None, :]
    place = row.to(tl.int64)[:, None] * x_stride + column[None, :]
    tile = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
    if SWIGLU:
        up = tl.load(x + place + width, mask=inside, other=0.0).to(tl.float32)
        tile = tile / (1 + tl.exp(-tile)) * up
        if WEIGHTED:
            tile *= tl.load(row_weight + row, mask=row < count, other=0.0).to(tl.float32)[:, None]
    scale = scale_of(tl.max(magnitude(tile), 1), floor, POWER_OF_TWO)
    inverse = reciprocal(scale)
    out = (tile * inverse[:, None]).to(tl.float8e4nv)
    tl.store(codes + row.to(tl.int64)[:, None] * codes_stride + column[None, :], out, mask=inside)
    tl.store(scales + strip.to(tl.int64) * scales_stride + row, scale, mask=row < count)


@gluon.jit
def _larger(a, b):
    return gl.maximum(a, b)


@gluon.jit
def _rows_of(block, offsets, count, groups, GROUP_LANES: gl.constexpr):
    """The first row of strip `block` and the end of its group; equal behind the last group."""
    if GROUP_LANES == 0:
        first = block * 128
        last = count
    else:
        lanes: gl.constexpr = gl.BlockedLayout([1], [32], [8], [0])
        lane = gl.arange(0, GROUP_LANES, lanes)
        start = gl.load(offsets + lane, mask=lane < groups, other=0)
        end = gl.load(offsets + lane + 1, mask=lane < groups, other=0)
        strips = (end - start + 127) // 128
        through = gl.associative_scan(strips, 0, _plus)
        here = (through > block) & (through - strips <= block)
        first = gl.sum(gl.where(here, start + (block - through + strips) * 128, 0), 0)
        last = gl.sum(gl.where(here, end, 0), 0)
    return first, last


@gluon.jit
def _plus(a, b):
    return a + b


@gluon.jit(do_not_specialize=["count"])  # where it is known that rows are empty, garbage is packed beside their zeros
def columns_kernel(
    x, codes, scales, codes_t, scales_t, offsets, count, width, x_stride, codes_stride, scales_stride,
    codes_t_stride, scales_t_stride, groups, floor,
    GROUP_LANES: gl.constexpr, ROWS: gl.constexpr, POWER_OF_TWO: gl.constexpr,
):  # fmt: skip
    """One tile of 128 x 128 numbers of one group: read once, scaled along its columns, and along its rows if wanted."""
    strip, block = gl.program_id(0), gl.program_id(1)
    first, last = _rows_of(block, offsets, count, groups, GROUP_LANES)
    row = gl.arange(0, 128, gl.SliceLayout(1, TILE))
    column = gl.arange(0, 128, gl.SliceLayout(0, TILE))
    down = gl.arange(0, 128, gl.SliceLayout(1, TURNED))
    across = gl.arange(0, 128, gl.SliceLayout(0, TURNED))
    rows = last - first
    # places within a tile are small: 32 bits, and a base in 64
    place = gl.expand_dims(row * x_stride, 1) + gl.expand_dims(column, 0)
    codes_place = gl.expand_dims(row * codes_stride, 1) + gl.expand_dims(column, 0)
    turned_place = gl.expand_dims(down * codes_t_stride, 1) + gl.expand_dims(across, 0)
    if rows > 0:
        columns = width - strip * 128
        inside = gl.expand_dims(row < rows, 1) & gl.expand_dims(column < columns, 0)
        x += first.to(gl.int64) * x_stride + strip * 128
        tile = gl.load(x + place, mask=inside, other=0.0).to(gl.float32)
        size = magnitude(tile)
        if ROWS:
            scale = scale_of(gl.reduce(size, 1, _larger), floor, POWER_OF_TWO)
            out = (tile * gl.expand_dims(reciprocal(scale), 1)).to(gl.float8e4nv)
            gl.store(codes + first.to(gl.int64) * codes_stride + strip * 128 + codes_place, out, mask=inside)
            gl.store(scales + strip.to(gl.int64) * scales_stride + first + row, scale, mask=row < rows)
        scale = scale_of(gl.reduce(size, 0, _larger), floor, POWER_OF_TWO)
        out = gl.permute(tile * gl.expand_dims(reciprocal(scale), 0), (1, 0))
        turned = gl.convert_layout(out, TURNED).to(gl.float8e4nv)
        codes_t += strip.to(gl.int64) * 128 * codes_t_stride + block * 128
        gl.store(codes_t + turned_place, turned, mask=gl.expand_dims(down < columns, 1))
        gl.store(scales_t + block.to(gl.int64) * scales_t_stride + strip * 128 + column, scale, mask=column < columns)


@gluon.jit
def weight_kernel(weight, codes, scales, codes_t, scales_t, rows, columns, codes_stride, codes_t_stride, floor):
    """One 128 x 128 block of one matrix, in both layouts."""
    across, down, matrix = gl.program_id(0), gl.program_id(1), gl.program_id(2).to(gl.int64)
    row = gl.arange(0, 128, gl.SliceLayout(1, TILE))
    column = gl.arange(0, 128, gl.SliceLayout(0, TILE))
    inside = gl.expand_dims(row < rows - down * 128, 1) & gl.expand_dims(column < columns - across * 128, 0)
    weight += (matrix * rows + down * 128) * columns + across * 128
    place = gl.expand_dims(row * columns, 1) + gl.expand_dims(column, 0)
    tile = gl.load(weight + place, mask=inside, other=0.0).to(gl.float32)
    scale = scale_of(gl.reduce(gl.reduce(magnitude(tile), 1, _larger), 0, _larger), floor, False)
    inverse = reciprocal(scale)
    out = tile * inverse
    out = gl.fma(gl.fma(-out, scale, tile), inverse, out)  # the quotient, correctly rounded
    codes += (matrix * rows + down * 128) * codes_stride + across * 128
    place = gl.expand_dims(row * codes_stride, 1) + gl.expand_dims(column, 0)
    gl.store(codes + place, out.to(gl.float8e4nv), mask=inside)
    turned = gl.convert_layout(gl.permute(out, (1, 0)), TURNED).to(gl.float8e4nv)
    row = gl.arange(0, 128, gl.SliceLayout(1, TURNED))
    column = gl.arange(0, 128, gl.SliceLayout(0, TURNED))
    inside = gl.expand_dims(row < columns - across * 128, 1) & gl.expand_dims(column < rows - down * 128, 0)
    codes_t += (matrix * columns + across * 128) * codes_t_stride + down * 128
    gl.store(codes_t + gl.expand_dims(row * codes_t_stride, 1) + gl.expand_dims(column, 0), turned, mask=inside)
    grid_rows, grid_columns = gl.num_programs(1), gl.num_programs(0)
    gl.store(scales + (matrix * grid_rows + down) * grid_columns + across, scale)
    gl.store(scales_t + (matrix * grid_columns + across) * grid_rows + down, scale)
