"""Products of e4m3 codes with fine-grained scales: partial sums go to float32 every 128 of the inner width (V3 3.3.2).

`a` is scaled in strips of 128 along its rows. `b` is scaled in 128 x 128 blocks (a weight) or in strips (a gradient or
an activation); whichever its scales are follows from their shape.
"""

from itertools import pairwise

import torch
from jaxtyping import Float, Float8e4m3fn, Int
from torch import Tensor

from fathom.kernels.dispatch import twin
from fathom.kernels.quant import BLOCK


@twin
def scaled_product(
    a: Float8e4m3fn[Tensor, "M K"],
    a_scales: Float[Tensor, "M S"],
    b: Float8e4m3fn[Tensor, "N K"],
    b_scales: Float[Tensor, "NB S"],
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "M N"]:
    """(a * scales) @ (b * scales).T. `b_scales` has a row per row of b, or per 128 rows.

    Every strip of the inner width is multiplied in codes, then scaled and added in float32; the result is rounded to
    `dtype` once. Raises ValueError where the scales fit neither form.
    """
    return _product(a, a_scales, b, b_scales).to(dtype)


@twin
def grouped_scaled_product(
    a: Float8e4m3fn[Tensor, "P K"],
    a_scales: Float[Tensor, "P S"],
    b: Float8e4m3fn[Tensor, "E N K"],
    b_scales: Float[Tensor, "E NB S"],
    offsets: Int[Tensor, " G"],
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "P N"]:
    """Rows offsets[e] to offsets[e + 1] of a times the e-th b: `scaled_product` per expert, groups of any size."""
    out = torch.empty(a.shape[0], b.shape[1], device=a.device, dtype=dtype)
    bounds = offsets.tolist()
    for e, (start, end) in enumerate(pairwise(bounds)):
        rows = slice(start, end)
        out[rows] = _product(a[rows], a_scales[rows], b[e], b_scales[e])
    return out


@twin
def grouped_scaled_outer(
    a: Float8e4m3fn[Tensor, "M P"],
    a_scales: Float[Tensor, "M C"],
    b: Float8e4m3fn[Tensor, "N P"],
    b_scales: Float[Tensor, "N C"],
    offsets: Int[Tensor, " G"],
) -> Float[Tensor, "E M N"]:
    """For every expert the product over its own rows: its weight's gradient in float32, zero where it had no rows.

    `a` and `b` are transposes as `quantize_rows_and_columns` lays them out, every group beginning at a strip.
    """
    out = torch.zeros(len(offsets) - 1, a.shape[0], b.shape[0], device=a.device)
    strip = 0
    for e, size in enumerate(offsets.diff().tolist()):
        last = strip + -(-size // BLOCK)
        places, strips = slice(strip * BLOCK, last * BLOCK), slice(strip, last)
        if size:
            out[e] = _product(a[:, places], a_scales[:, strips], b[:, places], b_scales[:, strips])
        strip = last
    return out


def _product(a: Tensor, a_scales: Tensor, b: Tensor, b_scales: Tensor) -> Float[Tensor, "M N"]:
    scales = _per_row(b_scales, b.shape[0])
    out = torch.zeros(a.shape[0], b.shape[0], device=a.device)
    for strip, (left, right) in enumerate(zip(a.float().split(BLOCK, 1), b.float().split(BLOCK, 1), strict=True)):
        out += (left @ right.T) * (a_scales[:, strip, None] * scales[None, :, strip])
    return out


def _per_row(scales: Tensor, rows: int) -> Tensor:
    """Scales of every row, whether they came per row or per block of rows."""
    if scales.shape[0] == rows:
        return scales
    if scales.shape[0] != -(-rows // BLOCK):
        raise ValueError(
            f"{scales.shape[0]} rows of scales do not fit {rows} rows of codes; "
            f"give one per row or one per {BLOCK} rows, {-(-rows // BLOCK)}"
        )
    return scales.repeat_interleave(BLOCK, 0)[:rows]
