"""One transformer layer: attention and a feed-forward layer, each behind a norm and around a residual."""

from jaxtyping import Bool, Float
from torch import Tensor, nn

from fathom.config import ModelConfig
from fathom.model.cache import Slots
from fathom.model.ffn import SwiGLU
from fathom.model.gqa import GQA
from fathom.model.linear import RMSNorm
from fathom.model.mla import MLA
from fathom.model.moe import MoE, RoutingTrace
from fathom.model.rope import Rotation


class Block(nn.Module):
    """Layer `layer` of the model; MTP modules count on behind the last."""

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
        x = x + self.attention(self.attention_norm(x), turn, mask, slots)
        normed = self.feed_forward_norm(x)
        if isinstance(self.feed_forward, MoE):
            return x + self.feed_forward(normed, trace)
        return x + self.feed_forward(normed)
