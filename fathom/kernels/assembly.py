"""Queries, keys and values of latent attention from the projections' outputs, rotated and joined in one pass."""

import torch
from jaxtyping import Float
from torch import Tensor

from fathom.kernels.dispatch import fastest


@fastest
def assemble_heads(
    q: Float[Tensor, "B T H Q"],
    kv: Float[Tensor, "B T H C"],
    k_rope: Float[Tensor, "B T R"],
    cos: Float[Tensor, "#B T R2"],
    sin: Float[Tensor, "#B T R2"],
) -> tuple[Float[Tensor, "B T H Q"], Float[Tensor, "B T H Q"], Float[Tensor, "B T H V"]]:
    """q with its last R dims rotated; (k_nope | k_rope rotated) with the one k_rope in every head; v (V2 2.1.3).

    kv holds k_nope and v of every head, Q = nope + R and C = nope + V. Neighbouring dims are a pair, and pair i of a
    token turns by the angle whose cosine and sine are given; arithmetic is in float32.
    """
    rope = k_rope.shape[-1]
    nope = q.shape[-1] - rope
    k_nope, v = kv.split((nope, kv.shape[-1] - nope), dim=-1)
    turned = _turn(k_rope.unsqueeze(2), cos, sin).expand(-1, -1, q.shape[2], -1)
    rotated = torch.cat((q[..., :nope], _turn(q[..., nope:], cos, sin)), dim=-1)
    return rotated, torch.cat((k_nope, turned), dim=-1), v


def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """(B, T, H, R) turned by the angles of its token."""
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = cos.unsqueeze(2), sin.unsqueeze(2)
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2).to(x.dtype)
