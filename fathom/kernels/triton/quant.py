"""Quantisation to e4m3 on a GPU: one pass over the input, whatever leaves it (twins of `fathom.kernels.quant`).

Codes come out with rows of a multiple of 16 bytes and scales column by column, as the products' copy engine wants them;
shapes and values are the definitions'.
"""

import torch
import torch.nn.functional as F
import triton
from jaxtyping import Float, Float8e4m3fn, Int
from torch import Tensor

from fathom.kernels.quant import AMAX_FLOOR, BLOCK, STRIP_FLOOR, WeightCodes, block_grid, column_strips
from fathom.kernels.triton.quant_kernels import columns_kernel, rows_kernel, weight_kernel

REGISTERS = 128  # of a thread: two programs share a processor
ROWS_ALONE = 32  # rows of one program where no columns are wanted


def quantize_rows(
    x: Float[Tensor, "N D"], power_of_two: bool = False
) -> tuple[Float8e4m3fn[Tensor, "N D"], Float[Tensor, "N S"]]:
    """Twin of the definition of the same name."""
    codes, scales = _row_buffers(x.shape[0], x.shape[1], x.device)
    _launch_rows(x, None, (codes, scales), power_of_two, swiglu=False)
    return codes, scales


def quantize_rows_and_columns(
    x: Float[Tensor, "N D"], offsets: Int[Tensor, " G"] | None = None, power_of_two: bool = False
) -> tuple[
    Float8e4m3fn[Tensor, "N D"],
    Float[Tensor, "N S"],
    Float8e4m3fn[Tensor, "D P"],
    Float[Tensor, "D C"],
]:
    """Twin of the definition of the same name."""
    rows = _row_buffers(x.shape[0], x.shape[1], x.device)
    columns = _column_buffers(x, offsets)
    _launch_columns(x, rows, columns, offsets, power_of_two)
    return *rows, *columns


def quantize_columns(
    x: Float[Tensor, "N D"], offsets: Int[Tensor, " G"] | None = None, power_of_two: bool = False
) -> tuple[Float8e4m3fn[Tensor, "D P"], Float[Tensor, "D C"]]:
    """Twin of the definition of the same name."""
    columns = _column_buffers(x, offsets)
    _launch_columns(x, None, columns, offsets, power_of_two)
    return columns


def quantize_swiglu(
    hidden: Float[Tensor, "N M2"], row_weight: Float[Tensor, " N"] | None = None, power_of_two: bool = False
) -> tuple[Float8e4m3fn[Tensor, "N M"], Float[Tensor, "N S"]]:
    """Twin of the definition of the same name."""
    rows = _row_buffers(hidden.shape[0], hidden.shape[1] // 2, hidden.device)
    _launch_rows(hidden, row_weight, rows, power_of_two, swiglu=True)
    return rows


def quantize_weight(weight: Float[Tensor, "*E O I"]) -> WeightCodes:
    """Twin of the definition of the same name."""
    matrices = weight.reshape(-1, *weight.shape[-2:])
    count, rows, columns = matrices.shape
    grid = block_grid((rows, columns))
    codes = _codes(count, rows, columns, weight.device)
    codes_t = _codes(count, columns, rows, weight.device)
    scales = torch.empty(count, *grid, device=weight.device)
    scales_t = torch.empty(count, *reversed(grid), device=weight.device)
    weight_kernel[(grid[1], grid[0], count)](
        matrices,
        codes,
        scales,
        codes_t,
        scales_t,
        rows,
        columns,
        codes.stride(1),
        codes_t.stride(1),
        AMAX_FLOOR,
        num_warps=8,
        maxnreg=REGISTERS,
    )
    leading = weight.shape[:-2]
    return WeightCodes(*(t.view(*leading, *t.shape[1:]) for t in (codes, scales, codes_t, scales_t)))


def _codes(count: int, rows: int, columns: int, device: torch.device) -> Tensor:
    """Room for codes whose rows begin at multiples of 16 bytes."""
    padded = torch.empty(count, rows, -(-columns // 16) * 16, device=device, dtype=torch.float8_e4m3fn)
    return padded[..., :columns]


def _row_buffers(rows: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    scales = torch.empty(-(-width // BLOCK), -(-rows // 4) * 4, device=device)
    return _codes(1, rows, width, device)[0], scales[:, :rows].T


def _column_buffers(x: Tensor, offsets: Tensor | None) -> tuple[Tensor, Tensor]:
    strips = column_strips(x.shape[0], 1 if offsets is None else len(offsets) - 1)
    scales = torch.empty(strips, -(-x.shape[1] // 4) * 4, device=x.device)
    return _codes(1, x.shape[1], strips * BLOCK, x.device)[0], scales[:, : x.shape[1]].T


def _readable(x: Tensor) -> Tensor:
    """x with its rows in one piece each, and more than a number apart: that would lead the compiler astray."""
    x = x if x.stride(1) == 1 else x.contiguous()
    return x if x.stride(0) > 1 else F.pad(x, (0, 15))[:, : x.shape[1]]


def _launch_rows(
    x: Tensor, row_weight: Tensor | None, rows: tuple[Tensor, Tensor], power_of_two: bool, swiglu: bool
) -> None:
    codes, scales = rows
    if not codes.numel():
        return
    x = _readable(x)
    rows_kernel[(-(-codes.shape[1] // BLOCK), -(-codes.shape[0] // ROWS_ALONE))](
        x,
        x if row_weight is None else row_weight,
        codes,
        scales,
        *codes.shape,
        x.stride(0),
        codes.stride(0),
        scales.stride(1),
        STRIP_FLOOR,
        TALL=ROWS_ALONE,
        SWIGLU=swiglu,
        WEIGHTED=row_weight is not None,
        POWER_OF_TWO=power_of_two,
    )


def _launch_columns(
    x: Tensor,
    rows: tuple[Tensor, Tensor] | None,
    columns: tuple[Tensor, Tensor],
    offsets: Tensor | None,
    power_of_two: bool,
) -> None:
    if not x.numel():
        return
    x = _readable(x)
    groups = 0 if offsets is None else len(offsets) - 1
    codes, scales = rows or columns
    codes_t, scales_t = columns
    columns_kernel[(-(-x.shape[1] // BLOCK), scales_t.shape[1])](
        x,
        codes,
        scales,
        codes_t,
        scales_t,
        scales_t if offsets is None else offsets,
        *x.shape,
        x.stride(0),
        codes.stride(0),
        scales.stride(1),
        codes_t.stride(0),
        scales_t.stride(1),
        groups,
        STRIP_FLOOR,
        GROUP_LANES=triton.next_power_of_2(groups) if groups else 0,
        ROWS=rows is not None,
        POWER_OF_TWO=power_of_two,
        num_warps=8,
        maxnreg=REGISTERS,
    )
