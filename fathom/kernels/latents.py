"""Latents in FP8: what is cached of a token in little more than half of its BF16 bytes.

One token is `latent_bytes` bytes: R codes in e4m3, the rotated key in BF16, one float32 scale for all codes, and zeros
up to a multiple of 16. The rotated key stays as it is: its few entries carry the position, and large ones among them.
"""

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from fathom.kernels.quant import E4M3_MAX

AMAX_FLOOR = 1e-20  # a latent of zeros needs a scale too
ALIGNMENT = 16  # bytes that a GPU copies at once
SCALE_BYTES = 4


def latent_bytes(rank: int, rope: int) -> int:
    """Bytes of one token: 656 for a latent of 512 and a rotated key of 64, which are 1,152 in BF16."""
    return -(-(rank + 2 * rope + SCALE_BYTES) // ALIGNMENT) * ALIGNMENT


def quantize_latents(latents: Float[Tensor, "*N W"], rank: int) -> UInt8[Tensor, "*N Y"]:
    """Pack cached vectors, latent first, in FP8; each token's latent is scaled so that its largest magnitude is 448.

    Raises ValueError unless `rank` is a multiple of 4 below the width, and the width even.
    """
    *lead, width = latents.shape
    if not 0 < rank < width or rank % 4 or width % 2:
        raise ValueError(
            f"a vector of {width} with rank={rank} cannot be packed; the rank must be a multiple of 4 below the width, "
            "and the width even"
        )
    latent = latents[..., :rank].float()
    packed = torch.zeros(*lead, latent_bytes(rank, width - rank), dtype=torch.uint8, device=latents.device)
    codes, key, scale = _fields(packed, rank, width - rank)
    scale.copy_(latent.abs().amax(-1, keepdim=True).clamp(min=AMAX_FLOOR) / E4M3_MAX)
    codes.copy_((latent / scale).to(torch.float8_e4m3fn))
    key.copy_(latents[..., rank:])
    return packed


def dequantize_latents(packed: UInt8[Tensor, "*N Y"], rank: int, rope: int) -> Float[Tensor, "*N W"]:
    """The float32 vectors that packed ones stand for."""
    codes, key, scale = _fields(packed, rank, rope)
    return torch.cat((codes.float() * scale, key.float()), dim=-1)


def _fields(packed: Tensor, rank: int, rope: int) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, rotated key and scale, each a view of its bytes."""
    end = rank + 2 * rope
    codes, key, scale = packed[..., :rank], packed[..., rank:end], packed[..., end : end + SCALE_BYTES]
    return codes.view(torch.float8_e4m3fn), key.view(torch.bfloat16), scale.view(torch.float32)
