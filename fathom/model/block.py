"""One transformer layer: attention and a feed-forward layer, each behind a norm and around a residual."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from fathom.config import ModelConfig
from fathom.model.cache import Slots
from fathom.model.ffn import SwiGLU
from fathom.model.gqa import GQA
from fathom.model.linear import RMSNorm
from fathom.model.mla import MLA
from fathom.model.moe import MoE
from fathom.model.recompute import Recompute, expansions, noted_once, recomputed, recomputed_cheaply
from fathom.model.rope import Rotation
from fathom.model.routing import RoutingTrace


class Block(nn.Module):
    """Layer `layer` of the model; MTP modules count on behind the last."""

    recompute: Recompute = "none"  # set by `parallelize`

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.attention = MLA(config, layer) if config.attention.kind == "mla" else GQA(config, layer)
        self.feed_forward_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        if config.is_moe_layer(layer):
            self.feed_forward = MoE(config)
        else:
            self.feed_forward = SwiGLU(config.hidden_size, config.intermediate_size)

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        turn: Rotation,
        mask: Bool[Tensor, "B T S"] | None = None,
        slots: Slots | None = None,
        trace: RoutingTrace | None = None,
    ) -> Float[Tensor, "B T D"]:
        if self.recompute == "none" or slots is not None or not torch.is_grad_enabled():
            return self._whole(x, turn, mask, trace, slots)
        if self.recompute == "full":
            again = noted_once(trace)

            def whole(x: Tensor) -> Tensor:
                return self._whole(x, turn, mask, again())

            return recomputed(whole, x)
        return self._selective(x, turn, mask, trace)

    def _whole(
        self, x: Tensor, turn: Rotation, mask: Tensor | None, trace: RoutingTrace | None, slots: Slots | None = None
    ) -> Tensor:
        attended = self.attention(self.attention_norm(x), turn, mask, slots)
        x, normed = self.feed_forward_norm.behind(x, attended)
        return x + self._fed_forward(normed, trace)

    def _selective(self, x: Tensor, turn: Rotation, mask: Tensor | None, trace: RoutingTrace | None) -> Tensor:
        """Norms, expanded latents and SwiGLU are computed again, but the norm before experts: their tokens travel."""

        def attend(x: Tensor) -> Tensor:
            return self.attention(self.attention_norm(x), turn, mask)

        x = x + recomputed_cheaply(attend, x, again=expansions(self.attention.config))
        if isinstance(self.feed_forward, MoE):
            return x + self.feed_forward(self.feed_forward_norm(x), trace, recompute_shared=True)

        def feed(x: Tensor) -> Tensor:
            return self._fed_forward(self.feed_forward_norm(x), None)

        return x + recomputed_cheaply(feed, x)

    def _fed_forward(self, normed: Tensor, trace: RoutingTrace | None) -> Tensor:
        return self.feed_forward(normed, trace) if isinstance(self.feed_forward, MoE) else self.feed_forward(normed)
