"""Grouped-query attention: the attention of Llama and Qwen, and the baseline of every MLA measurement."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from fathom.config import ModelConfig
from fathom.model.cache import Slots
from fathom.model.linear import RMSNorm, linear
from fathom.model.rope import Rotation, rotate
from fathom.parallel.context import row_attention, whole_rows
from fathom.parallel.mesh import ALONE, Axis


class GQA(nn.Module):
    """Query heads share the keys and values of their group; as many groups as heads is plain multi-head attention."""

    context: Axis = ALONE  # over which rows are spread; set by `Transformer.spread_rows`

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        a = config.attention
        self.layer, self.config = layer, a
        self.scale = a.head_dim**-0.5
        self.q_proj = linear(config.hidden_size, a.num_attention_heads * a.head_dim, a.attention_bias)
        self.k_proj = linear(config.hidden_size, a.num_key_value_heads * a.head_dim, a.attention_bias)
        self.v_proj = linear(config.hidden_size, a.num_key_value_heads * a.head_dim, a.attention_bias)
        self.o_proj = linear(a.num_attention_heads * a.head_dim, config.hidden_size)
        if a.qk_norm:
            self.q_norm = RMSNorm(a.head_dim, config.rms_norm_eps)
            self.k_norm = RMSNorm(a.head_dim, config.rms_norm_eps)

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        turn: Rotation,
        mask: Bool[Tensor, "B T S"] | None = None,
        slots: Slots | None = None,
    ) -> Float[Tensor, "B T D"]:
        q, k, v = (
            projection(x).unflatten(-1, (-1, self.config.head_dim))
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        if self.config.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = rotate(q, turn, interleaved=False), rotate(k, turn, interleaved=False)
        if slots is not None:
            seen = slots.extend(self.layer, torch.cat((k.flatten(2), v.flatten(2)), dim=-1))
            if not slots.fresh:
                mask = slots.mask
                k, v = (half.unflatten(-1, (-1, self.config.head_dim)) for half in seen.chunk(2, dim=-1))
        if self.context.size > 1:  # one message for both
            k, v = whole_rows(torch.cat((k, v), dim=2), self.context, "keys and values").chunk(2, dim=2)
        return self.o_proj(row_attention(q, k, v, self.scale, mask, self.context).flatten(2))
