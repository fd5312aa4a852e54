"""Fine-grained quantisation to e4m3: weights in 128 x 128 blocks, activations in 1 x 128 strips (V3 3.3.2)."""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float8e4m3fn, Int
from torch import Tensor

from fathom.kernels.dispatch import twin

BLOCK = 128  # rows and columns of a weight that share a scale; numbers of a strip
E4M3_MAX = 448.0
AMAX_FLOOR = 1e-4  # a block of zeros needs a scale too
STRIP_FLOOR = 1e-30  # and so does a strip; gradients of a mean over many tokens are far below a weight's floor


class WeightCodes(NamedTuple):
    """A weight, or one per expert, in both layouts: the forward product reads rows, the input's gradient columns."""

    codes: Float8e4m3fn[Tensor, "*E O I"]
    scales: Float[Tensor, "*E OB IB"]
    codes_t: Float8e4m3fn[Tensor, "*E I O"]
    scales_t: Float[Tensor, "*E IB OB"]


def block_grid(shape: Sequence[int], block: int = BLOCK) -> tuple[int, ...]:
    """How many blocks a weight of `shape` has along each dim; those at its edges may be smaller."""
    return tuple(-(-width // block) for width in shape)


def quantize_blocks(
    weight: Float[Tensor, "*E O I"], block: int = BLOCK
) -> tuple[Float8e4m3fn[Tensor, "*E O I"], Float[Tensor, "*E OB IB"]]:
    """Scale every `block` x `block` square of a weight so that its largest magnitude becomes 448.

    Returns codes and the float32 scales that multiply them back, `block_grid` of them.
    """
    rows, columns = weight.shape[-2:]
    padded = F.pad(weight.float(), (0, -columns % block, 0, -rows % block))
    squares = padded.unflatten(-1, (-1, block)).unflatten(-3, (-1, block))  # (*E, OB, block, IB, block)
    scales = squares.abs().amax(dim=(-3, -1)).clamp(min=AMAX_FLOOR) / E4M3_MAX
    codes = (squares / scales.unsqueeze(-2).unsqueeze(-1)).view_as(padded)[..., :rows, :columns]
    return codes.to(torch.float8_e4m3fn), scales


@twin
def quantize_weight(weight: Float[Tensor, "*E O I"]) -> WeightCodes:
    """`quantize_blocks` and the same codes transposed, both contiguous: what a step needs of a weight."""
    codes, scales = quantize_blocks(weight)
    codes = codes.contiguous()
    codes_t = codes.view(torch.uint8).mT.contiguous().view(torch.float8_e4m3fn)
    return WeightCodes(codes, scales, codes_t, scales.mT.contiguous())


def dequantize_blocks(
    codes: Float8e4m3fn[Tensor, "O I"], scales: Float[Tensor, "OB IB"], block: int = BLOCK
) -> Float[Tensor, "O I"]:
    """The float32 weight that codes and scales stand for. Raises ValueError where the scales do not fit the codes."""
    rows, columns = codes.shape
    if tuple(scales.shape) != block_grid(codes.shape, block):
        raise ValueError(
            f"scales of shape {tuple(scales.shape)} do not fit codes of shape {tuple(codes.shape)}; "
            f"blocks of {block} x {block} need {block_grid(codes.shape, block)}"
        )
    spread = scales.float().repeat_interleave(block, 0)[:rows].repeat_interleave(block, 1)[:, :columns]
    return codes.float() * spread


@twin
def quantize_rows(
    x: Float[Tensor, "N D"], power_of_two: bool = False
) -> tuple[Float8e4m3fn[Tensor, "N D"], Float[Tensor, "N S"]]:
    """Scale every strip of 128 numbers of a row so that its largest magnitude becomes 448.

    Returns codes and the float32 scales that multiply them back; the last strip of a row may be shorter. With
    `power_of_two` scales are rounded up to powers of two, so that scaling adds no error of its own (V3 3.5.2, 3.3.3).
    A strip with an infinite number or a NaN yields NaN wherever it is used: nothing saturates in silence.
    """
    width = x.shape[1]
    strips = F.pad(x.float(), (0, -width % BLOCK)).unflatten(1, (-1, BLOCK))  # (N, S, 128)
    scales = strip_scale(strips.abs().amax(-1), power_of_two)
    codes = strips * scales.reciprocal().unsqueeze(-1)
    return codes.flatten(1)[:, :width].to(torch.float8_e4m3fn), scales


@twin
def quantize_rows_and_columns(
    x: Float[Tensor, "N D"], offsets: Int[Tensor, " G"] | None = None, power_of_two: bool = False
) -> tuple[
    Float8e4m3fn[Tensor, "N D"],
    Float[Tensor, "N S"],
    Float8e4m3fn[Tensor, "D P"],
    Float[Tensor, "D C"],
]:
    """`quantize_rows`, and the transpose quantised along the rows of x, which the weight's gradient sums over.

    `offsets` (E + 1) bound groups of rows, the first 0 and the last N; without it all rows are one group. No strip of
    the transpose holds rows of two groups: group e begins at strip sum of ceil(size / 128) over the groups before it,
    and P = 128 C leaves room for any sizes (`column_strips`). Places of a group's last strip that no row fills have
    code zero; strips behind the last group hold nothing that may be read.
    """
    return *quantize_rows(x, power_of_two), *quantize_columns(x, offsets, power_of_two)


@twin
def quantize_columns(
    x: Float[Tensor, "N D"], offsets: Int[Tensor, " G"] | None = None, power_of_two: bool = False
) -> tuple[Float8e4m3fn[Tensor, "D P"], Float[Tensor, "D C"]]:
    """The second half of `quantize_rows_and_columns` alone."""
    bounds = [0, x.shape[0]] if offsets is None else offsets.tolist()
    spread = x.new_zeros(column_strips(x.shape[0], len(bounds) - 1) * BLOCK, x.shape[1], dtype=torch.float32)
    at = 0
    for start, end in pairwise(bounds):
        spread[at : at + end - start] = x[start:end]
        at += -(-(end - start) // BLOCK) * BLOCK
    return quantize_rows(spread.T, power_of_two)


def column_strips(rows: int, groups: int) -> int:
    """Strips of 128 rows that suffice for `groups` groups of `rows` rows together, whatever their sizes."""
    return (rows + (BLOCK - 1) * groups) // BLOCK


def dequantize_rows(codes: Float8e4m3fn[Tensor, "N D"], scales: Float[Tensor, "N S"]) -> Float[Tensor, "N D"]:
    """The float32 numbers that codes and the scales of their strips stand for."""
    return codes.float() * scales.repeat_interleave(BLOCK, 1)[:, : codes.shape[1]]


def strip_scale(amax: Float[Tensor, "*N"], power_of_two: bool) -> Float[Tensor, "*N"]:
    """What turns a largest magnitude into 448, or the next power of two above that."""
    scale = amax.clamp(min=STRIP_FLOOR) / E4M3_MAX
    if not power_of_two:
        return scale
    # adding a full mantissa carries into the exponent unless the mantissa is zero
    rounded = ((scale.view(torch.int32) + 0x7FFFFF) & ~0x7FFFFF).view(torch.float32)
    return torch.where(scale.isfinite(), rounded, scale)


@twin
def quantize_swiglu(
    hidden: Float[Tensor, "N M2"], row_weight: Float[Tensor, " N"] | None = None, power_of_two: bool = False
) -> tuple[Float8e4m3fn[Tensor, "N M"], Float[Tensor, "N S"]]:
    """`quantize_rows` of silu(gate) * up, times the row's gate weight if there is one; gate is hidden's first half."""
    return quantize_rows(swiglu(hidden, row_weight), power_of_two)


def swiglu(hidden: Float[Tensor, "N M2"], row_weight: Float[Tensor, " N"] | None = None) -> Float[Tensor, "N M"]:
    """silu(gate) * up in float32, times the row's weight if there is one."""
    gate, up = hidden.float().chunk(2, dim=-1)
    activation = F.silu(gate) * up
    return activation if row_weight is None else activation * row_weight.unsqueeze(-1)


def round_e5m6(x: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
    """x as E5M6 with a power-of-two scale per strip keeps it: six bits behind the leading one (V3 3.3.3).

    torch has no 12-bit type, so the rounded numbers come back in float32; what is modelled is the error.
    """
    width = x.shape[1]
    strips = F.pad(x.float(), (0, -width % BLOCK)).unflatten(1, (-1, BLOCK))
    scales = strip_scale(strips.abs().amax(-1) * (E4M3_MAX / 2**15), power_of_two=True).unsqueeze(-1)
    half = (strips / scales).half()  # five exponent bits, ten behind the leading one: four too many
    bits = half.view(torch.int16)
    kept = ((bits + 7 + ((bits >> 4) & 1)) & ~15).view(torch.float16)
    return (kept.float() * scales).flatten(1)[:, :width]
