"""Block quantisation of weights: e4m3 codes with one float32 scale per 128 x 128 block (V3 3.3.2)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float8e4m3fn
from torch import Tensor

BLOCK = 128  # rows and columns that share a scale
E4M3_MAX = 448.0
AMAX_FLOOR = 1e-4  # a block of zeros needs a scale too


def block_grid(shape: Sequence[int], block: int = BLOCK) -> tuple[int, ...]:
    """How many blocks a weight of `shape` has along each dim; those at its edges may be smaller."""
    return tuple(-(-width // block) for width in shape)


def quantize_blocks(
    weight: Float[Tensor, "O I"], block: int = BLOCK
) -> tuple[Float8e4m3fn[Tensor, "O I"], Float[Tensor, "OB IB"]]:
    """Scale every `block` x `block` square of a weight so that its largest magnitude becomes 448.

    Returns codes and the float32 scales that multiply them back, `block_grid` of them.
    """
    rows, columns = weight.shape
    padded = F.pad(weight.float(), (0, -columns % block, 0, -rows % block))
    squares = padded.view(-1, block, padded.shape[1] // block, block)  # (OB, block, IB, block)
    scales = squares.abs().amax(dim=(1, 3)).clamp(min=AMAX_FLOOR) / E4M3_MAX
    codes = (squares / scales[:, None, :, None]).view_as(padded)[:rows, :columns]
    return codes.to(torch.float8_e4m3fn), scales


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
