"""Scaled dot-product attention in the two forms that multi-head latent attention needs (V2 2.1, appendix C)."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int32, UInt8
from torch import Tensor
from torch.autograd.function import once_differentiable

from fathom.kernels.dispatch import twin
from fathom.kernels.latents import dequantize_latents, latent_bytes

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
    weights = scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(latents.dtype)
    return torch.bmm(weights, latents[..., :rank]).view(batch, time, heads, rank)


@twin
def paged_latent_attention(
    q: Float[Tensor, "B T H W"],
    pages: Float[Tensor, "P S W"] | UInt8[Tensor, "P S Y"],
    table: Int32[Tensor, "B C"],
    length: Int32[Tensor, " B"],
    rank: int,
    scale: float,
    splits: int | None = None,
) -> Float[Tensor, "B T H R"]:
    """`latent_attention` over latents that lie in pages of S tokens, for decoding and for checking drafts.

    The tokens of row b are those of pages table[b, 0], table[b, 1], ...; its T new ones are already written. Query t
    sees the first length[b] + t of them, so `length` counts the first new token. A row of length 0 gives zeros, and
    neither table entries nor cached values behind the last token matter. `pages` may hold what `quantize_latents`
    packs. Weights are softmaxed in float32. A GPU reads long contexts in `splits` parts, as many as suit the batch
    unless given; that changes rounding alone and is of no account here. Raises ValueError where shapes and types do not
    fit each other.
    """
    check_pages(q, pages, table, length, rank)
    batch, time, heads, width = q.shape
    place = torch.arange(table.shape[1] * pages.shape[1], device=q.device)
    end = torch.where(length > 0, length + time - 1, 0)  # behind the last token that any query sees
    used = place.view(table.shape[1], -1)[:, 0] < end.unsqueeze(1)
    latents = pages[table.where(used, 0)].flatten(1, 2)  # (B, C*S, W)
    if pages.dtype == torch.uint8:
        latents = dequantize_latents(latents, rank, width - rank)
    latents = latents.to(q.dtype).where((place < end.unsqueeze(1)).unsqueeze(2), 0.0)
    steps = torch.arange(time, device=q.device)
    seen = place < (length.unsqueeze(1) + steps).unsqueeze(2)  # (B, T, C*S)
    seen &= (length > 0).view(-1, 1, 1)
    scores = torch.bmm(q.reshape(batch, time * heads, width), latents.transpose(1, 2)).mul_(scale)
    scores = scores.view(batch, time, heads, -1).masked_fill_(~seen.unsqueeze(2), float("-inf"))
    weights = scores.softmax(-1, dtype=torch.promote_types(q.dtype, torch.float32)).nan_to_num_(0.0).to(q.dtype)
    return torch.bmm(weights.view(batch, time * heads, -1), latents[..., :rank]).view(batch, time, heads, rank)


@twin
def paged_grouped_attention(
    q: Float[Tensor, "B T H D"],
    pages: Float[Tensor, "P S W"],
    table: Int32[Tensor, "B C"],
    length: Int32[Tensor, " B"],
    scale: float,
    splits: int | None = None,
) -> Float[Tensor, "B T H D"]:
    """Grouped-query attention over pages whose entries are the keys of all groups, then their values.

    Rows, `table`, `length` and `splits` as in `paged_latent_attention`.
    """
    batch, time, heads, size = q.shape
    place = torch.arange(table.shape[1] * pages.shape[1], device=q.device)
    end = torch.where(length > 0, length + time - 1, 0)
    used = place.view(table.shape[1], -1)[:, 0] < end.unsqueeze(1)
    entries = pages[table.where(used, 0)].flatten(1, 2).where((place < end.unsqueeze(1)).unsqueeze(2), 0.0)
    k, v = (half.unflatten(-1, (-1, size)) for half in entries.chunk(2, dim=-1))  # (B, C*S, G, D)
    steps = torch.arange(time, device=q.device)
    seen = (place < (length.unsqueeze(1) + steps).unsqueeze(2)) & (length > 0).view(-1, 1, 1)  # (B, T, C*S)
    share = q.view(batch, time, k.shape[2], -1, size)
    scores = torch.einsum("btghd,bsgd->btghs", share, k).mul_(scale)
    scores = scores.masked_fill_(~seen[:, :, None, None], float("-inf"))
    weights = scores.softmax(-1, dtype=torch.promote_types(q.dtype, torch.float32)).nan_to_num_(0.0).to(q.dtype)
    return torch.einsum("btghs,bsgd->btghd", weights, v).reshape(batch, time, heads, size)


def check_pages(q: Tensor, pages: Tensor, table: Tensor, length: Tensor, rank: int) -> None:
    """Refuse what `paged_latent_attention` could only misread. Looks at shapes and types, never at values."""
    batch, _, _, width = q.shape
    if not 0 < rank < width:
        raise ValueError(
            f"rank={rank} leaves no rotated key in a width of {width}; it must be between 1 and {width - 1}"
        )
    wanted = latent_bytes(rank, width - rank) if pages.dtype == torch.uint8 else width
    if pages.shape[2] != wanted or pages.dtype not in (q.dtype, torch.uint8):
        raise ValueError(
            f"pages hold {pages.shape[2]} x {pages.dtype} a token; queries of {width} x {q.dtype} with rank={rank} "
            f"need {width} x {q.dtype} or {latent_bytes(rank, width - rank)} x torch.uint8"
        )
    if table.shape[0] != batch or length.shape != (batch,) or {table.dtype, length.dtype} != {torch.int32}:
        raise ValueError(
            f"a batch of {batch} needs a table of {batch} rows and {batch} lengths, both int32; given are a table of "
            f"{tuple(table.shape)} {table.dtype} and lengths of {tuple(length.shape)} {length.dtype}"
        )
