"""Scaled dot-product attention in the two forms that multi-head latent attention needs (V2 2.1, appendix C)."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable

SHORT = 128  # up to this many tokens a CPU is faster with plain products than with the blocks of fused attention


def expanded_attention(
    q: Float[Tensor, "B T H K"],
    k: Float[Tensor, "B S G K"],
    v: Float[Tensor, "B S G V"],
    scale: float,
    mask: Bool[Tensor, "B T S"] | None = None,
) -> Float[Tensor, "B T H V"]:
    """Attention over full keys and values; causal when no `mask` says which keys (True) a query sees."""
    plain = mask is None and q.shape[2] == k.shape[2] and not (q.is_cuda or torch.is_autocast_enabled("cpu"))
    if plain and q.shape[1] <= SHORT:
        return _short_attention(q, k, v, scale)
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


def _short_attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Causal attention over short rows: one matrix a row and head."""
    flat = (x.transpose(1, 2).flatten(0, 1) for x in (q, k, v))  # (B*H, T, width)
    out: Tensor = _ShortAttention.apply(*flat, scale)  # pyright: ignore[reportAssignmentType]
    return out.unflatten(0, (q.shape[0], q.shape[2])).transpose(1, 2)


class _ShortAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        hidden = q.new_full((q.shape[1], q.shape[1]), float("-inf")).triu_(1)
        weights = torch.baddbmm(hidden, q, k.transpose(1, 2), alpha=scale).softmax(-1)
        ctx.save_for_backward(q, k, v, weights)
        ctx.scale = scale
        return torch.bmm(weights, v)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        q, k, v, weights = ctx.saved_tensors
        (grad,) = grads
        grad_v = torch.bmm(weights.transpose(1, 2), grad)
        grad_weights = torch.bmm(grad, v.transpose(1, 2))
        # the softmax's gradient: what exceeds the row's own weighted mean
        mean = (grad_weights * weights).sum(-1, keepdim=True)
        grad_scores = grad_weights.sub_(mean).mul_(weights).mul_(ctx.scale)
        return torch.bmm(grad_scores, k), torch.bmm(grad_scores.transpose(1, 2), q), grad_v, None


def latent_attention(
    q: Float[Tensor, "B T H W"],
    latents: Float[Tensor, "B S W"],
    rank: int,
    scale: float,
    bias: Float[Tensor, "B T S"],
) -> Float[Tensor, "B T H R"]:
    """Absorbed attention: one shared key of width W = R + rope whose first R entries are also the value.

    `q` carries the up-projected key weights (W_UK^T q_nope) and the rotated part; the result is in the latent
    space, for W_UV to expand (V2 appendix C). `bias` is added to the scores: -inf hides a key.
    """
    batch, time, heads, width = q.shape
    if time > 1:
        bias = bias.unsqueeze(2).expand(-1, -1, heads, -1).flatten(1, 2)  # (B, T*H, S)
    scores = torch.baddbmm(
        bias.to(q.dtype), q.reshape(batch, time * heads, width), latents.transpose(1, 2), alpha=scale
    )
    weights = scores.softmax(-1, dtype=torch.float32).to(latents.dtype)
    return torch.bmm(weights, latents[..., :rank]).view(batch, time, heads, rank)
