"""Scaled FP8 products on Hopper (twins of `fathom.kernels.scaled`): descriptors, tiles, launches."""

from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from jaxtyping import Float, Float8e4m3fn, Int
from torch import Tensor
from torch.nn.functional import ScalingType
from triton.experimental.gluon.language import NVMMASharedLayout
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from fathom.kernels.quant import BLOCK
from fathom.kernels.triton.scaled_blocks import blocks_kernel
from fathom.kernels.triton.scaled_strips import strips_kernel

WASTE = 1.06  # how much more a grid of 192-row tiles may cost before 128-row ones are faster; measured
OUTER_BAND = 8
LONG = 2048  # inner width from which torch's product with blocks is 1 to 3 % faster than ours; measured


class Tiling(NamedTuple):
    """One form of the kernel for blocks."""

    readers: int  # groups of four warps, 64 rows each
    stages: int
    registers: int  # of a thread of theirs
    limit: int  # registers that the compiler may use


SMALL = Tiling(readers=2, stages=5, registers=232, limit=168)
TALL = Tiling(readers=3, stages=4, registers=160, limit=128)


def scaled_product(
    a: Float8e4m3fn[Tensor, "M K"],
    a_scales: Float[Tensor, "M S"],
    b: Float8e4m3fn[Tensor, "N K"],
    b_scales: Float[Tensor, "NB S"],
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "M N"]:
    """Twin of the definition of the same name."""
    if b_scales.shape[0] == b.shape[0]:
        if _suits_torch(a, a_scales) and _suits_torch(b, b_scales):
            strips = ScalingType.BlockWise1x128
            return F.scaled_mm(a, b.T, a_scales, strips, b_scales, strips, output_dtype=dtype)
        return grouped_scaled_outer(a, a_scales, b, b_scales, _bounds(a.shape[1], a.device))[0].to(dtype)
    if b_scales.shape[0] != -(-b.shape[0] // BLOCK):
        raise ValueError(
            f"{b_scales.shape[0]} rows of scales do not fit {b.shape[0]} rows of codes; "
            f"give one per row or one per {BLOCK} rows, {-(-b.shape[0] // BLOCK)}"
        )
    if a.shape[1] >= LONG and dtype == torch.bfloat16 and _suits_torch(a, a_scales) and _suits_torch(b):
        strips, blocks = ScalingType.BlockWise1x128, ScalingType.BlockWise128x128
        if b_scales.is_contiguous() and b_scales.shape[1] % 4 == 0:
            return F.scaled_mm(a, b.T, a_scales, strips, b_scales.T, blocks, output_dtype=dtype)
    bounds = _bounds(a.shape[0], a.device)
    return grouped_scaled_product(a, a_scales, b.unsqueeze(0), b_scales.unsqueeze(0), bounds, dtype)


def grouped_scaled_product(
    a: Float8e4m3fn[Tensor, "P K"],
    a_scales: Float[Tensor, "P S"],
    b: Float8e4m3fn[Tensor, "E N K"],
    b_scales: Float[Tensor, "E NB S"],
    offsets: Int[Tensor, " G"],
    dtype: torch.dtype = torch.float32,
    tiling: Tiling | None = None,
) -> Float[Tensor, "P N"]:
    """Twin of the definition of the same name; `tiling` is chosen by shape unless given."""
    (rows, inner), (groups, columns) = a.shape, b.shape[:2]
    out = _room(rows, columns, dtype, a.device)
    if not rows:
        return out
    a, b = _with_aligned_rows(a), _with_aligned_rows(b)
    scales = align_scales(a_scales, offsets) if groups > 1 else _columns_of(a_scales)
    processors = _processors(a.device)
    tiling = tiling or choose_tiling(rows, columns, groups, processors)
    if dtype == torch.float32:  # the way out takes twice the room
        tiling = SMALL._replace(stages=4)
    flat = b.as_strided((groups * columns, inner), (b.stride(1), 1))
    blocks_kernel[(processors,)](
        _descriptor(a, [64, 128], 128),
        _descriptor(flat, [128, 128], 128),
        _descriptor(_flat(scales), [64], 0),
        _descriptor(_from_16_bytes(b_scales.reshape(-1)), [4], 0),
        _descriptor(out, [64, 128], 128),
        out,
        offsets,
        columns,
        inner,
        groups,
        processors,
        scales.stride(1),
        out.stride(0),
        READERS=tiling.readers,
        STAGES=tiling.stages,
        BAND=16 if groups == 1 and tiling.readers == 2 else 8,
        REGISTERS=tiling.registers,
        num_warps=4,
        maxnreg=tiling.limit,
    )
    return out


def grouped_scaled_outer(
    a: Float8e4m3fn[Tensor, "M P"],
    a_scales: Float[Tensor, "M C"],
    b: Float8e4m3fn[Tensor, "N P"],
    b_scales: Float[Tensor, "N C"],
    offsets: Int[Tensor, " G"],
) -> Float[Tensor, "E M N"]:
    """Twin of the definition of the same name."""
    groups, (rows, columns) = len(offsets) - 1, (a.shape[0], b.shape[0])
    out = _room(groups * rows, columns, torch.float32, a.device)
    if not a.shape[1]:
        return out.zero_().unflatten(0, (groups, rows))
    a, b = _with_aligned_rows(a), _with_aligned_rows(b)
    a_scales, b_scales = _columns_of(a_scales), _columns_of(b_scales)
    processors = _processors(a.device)
    strips_kernel[(processors,)](
        _descriptor(a, [64, 128], 128),
        _descriptor(b, [128, 128], 128),
        _descriptor(_flat(a_scales), [64], 0),
        _descriptor(_flat(b_scales), [128], 0),
        _descriptor(out, [64, 128], 128),
        out,
        offsets,
        rows,
        columns,
        groups,
        processors,
        a_scales.stride(1),
        b_scales.stride(1),
        out.stride(0),
        STAGES=4,
        BAND=OUTER_BAND,
        REGISTERS=232,
        num_warps=4,
        maxnreg=168,
    )
    return out.unflatten(0, (groups, rows))


def _suits_torch(codes: Tensor, scales: Tensor | None = None) -> bool:
    """Whether torch's own product takes codes, and the scales of their strips, as they lie."""
    rows, width = codes.shape
    in_columns = scales is None or (scales.stride(0) == 1 and (scales.shape[1] == 1 or scales.stride(1) == rows))
    return in_columns and rows > 0 and rows % 16 == 0 and width % BLOCK == 0 and codes.stride() == (width, 1)


def choose_tiling(rows: int, columns: int, groups: int, processors: int) -> Tiling:
    """The taller tile where its last wave wastes little: the host knows the mean group alone."""

    def cost(tiling: Tiling) -> int:
        height = 64 * tiling.readers
        tiles = groups * -(-rows // (groups * height)) * -(-columns // BLOCK)
        return -(-tiles // processors) * height

    return TALL if cost(TALL) < WASTE * cost(SMALL) else SMALL


def align_scales(scales: Float[Tensor, "P S"], offsets: Int[Tensor, " G"]) -> Float[Tensor, "Q S"]:
    """Scales column by column, group e beginning at row (offsets[e] + 3 e) rounded down to a multiple of 4.

    The copy engine begins at multiples of 16 bytes, and groups of rows begin anywhere; these places never overlap.
    """
    scales = _columns_of(scales)
    groups = len(offsets) - 1
    rows = -(-(scales.shape[0] + 3 * groups) // 4) * 4
    out = torch.empty(scales.shape[1], rows, device=scales.device).T
    _align_kernel[(-(-scales.shape[0] // 256),)](
        scales,
        out,
        offsets,
        scales.shape[0],
        scales.shape[1],
        groups,
        scales.stride(1),
        out.stride(1),
        GROUP_LANES=triton.next_power_of_2(groups),
    )
    return out


@triton.jit
def _align_kernel(scales, out, offsets, rows, strips, groups, stride, out_stride, GROUP_LANES: tl.constexpr):
    row = tl.program_id(0) * 256 + tl.arange(0, 256)
    lane = tl.arange(0, GROUP_LANES)
    end = tl.load(offsets + 1 + lane, mask=lane < groups, other=2147483647)
    group = tl.sum((end[None, :] <= row[:, None]).to(tl.int32), 1)
    start = tl.load(offsets + group, mask=row < rows, other=0)
    place = ((start + 3 * group) & -4) + row - start
    for strip in range(strips):
        values = tl.load(scales + strip * stride + row, mask=row < rows)
        tl.store(out + strip * out_stride + place, values, mask=row < rows)


@cache
def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


@cache
def _bounds(rows: int, device: torch.device) -> Tensor:
    """Offsets of one group, made once: a copy from the host would be waited for."""
    return torch.tensor([0, rows], dtype=torch.int32, device=device)


def _room(rows: int, columns: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A matrix whose rows begin at multiples of 16 bytes."""
    step = 16 // dtype.itemsize
    return torch.empty(rows, -(-columns // step) * step, dtype=dtype, device=device)[:, :columns]


def _with_aligned_rows(codes: Tensor) -> Tensor:
    """Codes as the copy engine reads them: rows next to one another, each at a multiple of 16 bytes."""
    one_piece = codes.ndim == 2 or codes.stride(0) == codes.shape[1] * codes.stride(1)
    if one_piece and codes.stride(-1) == 1 and codes.stride(-2) % 16 == 0 and codes.data_ptr() % 16 == 0:
        return codes
    padded = codes.new_empty(*codes.shape[:-1], -(-codes.shape[-1] // 16) * 16)[..., : codes.shape[-1]]
    return padded.copy_(codes)


def _columns_of(scales: Tensor) -> Tensor:
    """Scales column by column, as quantisation leaves them, each column at a multiple of 16 bytes."""
    if scales.stride(0) == 1 and scales.stride(1) % 4 == 0 and scales.data_ptr() % 16 == 0:
        return scales
    out = torch.empty(scales.shape[1], -(-scales.shape[0] // 4) * 4, device=scales.device).T[: scales.shape[0]]
    return out.copy_(scales)


def _from_16_bytes(x: Tensor) -> Tensor:
    """x where the copy engine can begin to read."""
    return x if x.data_ptr() % 16 == 0 else x.clone()


def _flat(scales: Tensor) -> Tensor:
    """All columns one after the other."""
    return scales.as_strided(((scales.shape[1] - 1) * scales.stride(1) + scales.shape[0],), (1,))


def _descriptor(x: Tensor, block: list[int], swizzle: int) -> TensorDescriptor:
    """What the copy engine needs to know of a tensor to fetch or put blocks of it."""
    layout = NVMMASharedLayout(swizzle, x.element_size() * 8, x.ndim)
    return TensorDescriptor.from_tensor(x, block, layout)
