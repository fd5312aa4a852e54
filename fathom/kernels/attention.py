"""Scaled dot-product attention in the two forms that multi-head latent attention needs (V2 2.1, appendix C)."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor


def expanded_attention(
    q: Float[Tensor, "B T H K"],
    k: Float[Tensor, "B S G K"],
    v: Float[Tensor, "B S G V"],
    scale: float,
    mask: Bool[Tensor, "B T S"] | None = None,
) -> Float[Tensor, "B T H V"]:
    """Attention over full keys and values; causal when no `mask` says which keys (True) a query sees."""
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    pad = q.shape[-1] - v.shape[-1]
    if pad > 0 and not q.is_cuda:  # equal widths take the fused path on a CPU
        v = F.pad(v, (0, pad))
    out = F.scaled_dot_product_attention(
        q,
        k,
        v,
        attn_mask=None if mask is None else mask.unsqueeze(1),
        is_causal=mask is None,
        scale=scale,
        enable_gqa=q.shape[1] != k.shape[1],
    )
    if pad > 0 and not q.is_cuda:
        out = out[..., :-pad]
    return out.transpose(1, 2)


def latent_attention(
    q: Float[Tensor, "B T H W"],
    latents: Float[Tensor, "B S W"],
    rank: int,
    scale: float,
    mask: Bool[Tensor, "B T S"],
) -> Float[Tensor, "B T H R"]:
    """Absorbed attention: one shared key of width W = R + rope whose first R entries are also the value.

    `q` carries the up-projected key weights (W_UK^T q_nope) and the rotated part; the result is in the latent
    space, for W_UV to expand (V2 appendix C).
    """
    batch, time, heads, width = q.shape
    scores = torch.bmm(q.reshape(batch, time * heads, width), latents.transpose(1, 2)).mul_(scale)
    scores = scores.view(batch, time, heads, -1).masked_fill_(~mask.unsqueeze(2), float("-inf"))
    weights = scores.softmax(-1, dtype=torch.float32).to(latents.dtype)
    return torch.bmm(weights.view(batch, time * heads, -1), latents[..., :rank]).view(batch, time, heads, rank)
