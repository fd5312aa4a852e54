"""Multi-head latent attention (V2 2.1, appendix C): keys and values live in one small latent per token."""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from fathom.config import AttentionConfig, ModelConfig
from fathom.kernels.assembly import assemble_heads
from fathom.kernels.fuse import is_fused
from fathom.model.cache import Slots
from fathom.model.linear import RMSNorm, linear
from fathom.model.rope import Rotation, rotate, softmax_scale
from fathom.parallel.context import row_attention, whole_rows
from fathom.parallel.mesh import ALONE, Axis


class MLA(nn.Module):
    """Training expands the latent into keys and values; decoding absorbs their weights into the query.

    So does reading on from a cache, unless the new tokens are so many that expanding all the old latents is cheaper.
    Where a row is spread over processes they exchange its latents, which are far less than its keys and values.
    """

    context: Axis = ALONE  # over which rows are spread; set by `Transformer.spread_rows`

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        a = config.attention
        self.layer, self.config = layer, a
        self.scale = softmax_scale(config.rope, a.qk_head_dim)
        self.few = absorbed_tokens(a)
        query_width = a.num_attention_heads * a.qk_head_dim
        if a.q_lora_rank is None:
            self.q_proj = linear(config.hidden_size, query_width)
        else:
            self.q_a_proj = linear(config.hidden_size, a.q_lora_rank)
            self.q_a_norm = RMSNorm(a.q_lora_rank)
            self.q_b_proj = linear(a.q_lora_rank, query_width)
        self.kv_a_proj = linear(config.hidden_size, a.kv_lora_rank + a.qk_rope_head_dim)
        self.kv_a_norm = RMSNorm(a.kv_lora_rank)
        self.kv_b_proj = linear(a.kv_lora_rank, a.num_attention_heads * (a.qk_nope_head_dim + a.v_head_dim))
        self.o_proj = linear(a.num_attention_heads * a.v_head_dim, config.hidden_size)

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        turn: Rotation,
        mask: Bool[Tensor, "B T S"] | None = None,
        slots: Slots | None = None,
    ) -> Float[Tensor, "B T D"]:
        if slots is None and self.context.size == 1 and torch.is_grad_enabled() and is_fused(x):
            return self._trained(x, turn, mask)
        q_nope, q_rope = self._queries(x, turn)
        latents = self._latents(x, turn)
        if slots is None or slots.fresh:
            out = self._expanded(q_nope, q_rope, whole_rows(latents, self.context, "latents"), mask)
            if slots is not None:
                slots.extend(self.layer, latents)
        elif x.shape[1] > self.few:
            out = self._expanded(q_nope, q_rope, slots.extend(self.layer, latents), slots.mask)
        else:
            out = self._absorbed(q_nope, q_rope, latents, slots)
        return self.o_proj(out.flatten(2))

    def _trained(self, x: Tensor, turn: Rotation, mask: Tensor | None) -> Float[Tensor, "B T D"]:
        """Whole rows without a cache: heads are assembled in one pass, and so are their gradients."""
        a = self.config
        latent, k_rope = self.kv_a_proj(x).split((a.kv_lora_rank, a.qk_rope_head_dim), dim=-1)
        kv = self.kv_b_proj(self.kv_a_norm(latent)).unflatten(-1, (a.num_attention_heads, -1))
        q, k, v = assemble_heads(self._projected(x), kv, k_rope, turn.cos.squeeze(2), turn.sin.squeeze(2))
        return self.o_proj(row_attention(q, k, v, self.scale, mask, self.context).flatten(2))

    def _projected(self, x: Tensor) -> Float[Tensor, "B T H K"]:
        a = self.config
        q = self.q_proj(x) if a.q_lora_rank is None else self.q_b_proj(self.q_a_norm(self.q_a_proj(x)))
        return q.unflatten(-1, (a.num_attention_heads, a.qk_head_dim))

    def _queries(self, x: Tensor, turn: Rotation) -> tuple[Tensor, Tensor]:
        """(B, T, H, nope) and (B, T, H, rope)."""
        a = self.config
        q_nope, q_rope = self._projected(x).split((a.qk_nope_head_dim, a.qk_rope_head_dim), dim=-1)
        return q_nope, rotate(q_rope, turn, interleaved=True)

    def _latents(self, x: Tensor, turn: Rotation) -> Float[Tensor, "B T W"]:
        """What is cached of a token: the normalised latent and the rotated key that all heads share."""
        latent, k_rope = self.kv_a_proj(x).split((self.config.kv_lora_rank, self.config.qk_rope_head_dim), dim=-1)
        k_rope = rotate(k_rope.unsqueeze(2), turn, interleaved=True).squeeze(2)
        return torch.cat((self.kv_a_norm(latent), k_rope), dim=-1)

    def _expanded(self, q_nope: Tensor, q_rope: Tensor, latents: Tensor, mask: Tensor | None) -> Tensor:
        """(B, T, H, v): multi-head attention over the expanded latents of whole rows."""
        a = self.config
        latent, k_rope = latents.split((a.kv_lora_rank, a.qk_rope_head_dim), dim=-1)
        kv = self.kv_b_proj(latent).unflatten(-1, (a.num_attention_heads, a.qk_nope_head_dim + a.v_head_dim))
        k_nope, v = kv.split((a.qk_nope_head_dim, a.v_head_dim), dim=-1)
        k_rope = k_rope.unsqueeze(2).expand(-1, -1, a.num_attention_heads, -1)
        q, k = torch.cat((q_nope, q_rope), dim=-1), torch.cat((k_nope, k_rope), dim=-1)
        return row_attention(q, k, v, self.scale, mask, self.context)

    def _absorbed(self, q_nope: Tensor, q_rope: Tensor, latents: Tensor, slots: Slots) -> Tensor:
        """(B, T, H, v): W_UK moves into the query and W_UV behind the attention, so latents are read as they are."""
        a = self.config
        weight = self.kv_b_proj.weight.view(a.num_attention_heads, a.qk_nope_head_dim + a.v_head_dim, a.kv_lora_rank)
        w_uk, w_uv = weight.split((a.qk_nope_head_dim, a.v_head_dim), dim=1)
        q = torch.cat((per_head(q_nope, w_uk), q_rope), dim=-1)
        context = slots.attend(self.layer, latents, q, a.kv_lora_rank, self.scale)
        return per_head(context, w_uv.transpose(1, 2))


def per_head(x: Float[Tensor, "B T H I"], weight: Float[Tensor, "H I O"]) -> Float[Tensor, "B T H O"]:
    """Each head times its own matrix."""
    out = torch.bmm(x.flatten(0, 1).transpose(0, 1), weight)  # (H, B*T, O)
    return out.transpose(0, 1).unflatten(0, x.shape[:2])


def absorbed_tokens(config: AttentionConfig) -> float:
    """New tokens of a row up to which absorbed attention over its cache costs no more products than expanded.

    A query and a key of one head cost 2 R + rope products absorbed and nope + rope + v expanded, but first each key
    must be expanded, by R (nope + v).
    """
    expanded = config.qk_nope_head_dim + config.v_head_dim
    more = 2 * config.kv_lora_rank - expanded
    return config.kv_lora_rank * expanded / more if more > 0 else math.inf
