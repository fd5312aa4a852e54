"""Multi-token prediction: a small module that predicts one token further, sharing embedding and head (V3 2.2)."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from fathom.config import ModelConfig
from fathom.model.block import Block
from fathom.model.cache import Slots
from fathom.model.linear import RMSNorm, linear
from fathom.model.rope import Rotation
from fathom.model.routing import RoutingTrace


class MTPModule(nn.Module):
    """h^k_i from h^(k-1)_i and the embedding of token i + k (V3 eq. 21-23).

    The projection takes the embedding first: that is the order of the released weights, while the paper
    prints the hidden state first.
    """

    def __init__(self, config: ModelConfig, depth: int) -> None:
        super().__init__()
        self.embed_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.hidden_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.projection = linear(2 * config.hidden_size, config.hidden_size)
        self.block = Block(config, config.num_hidden_layers + depth)
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self,
        hidden: Float[Tensor, "B T D"],
        embedding: Float[Tensor, "B T D"],
        turn: Rotation,
        mask: Bool[Tensor, "B T S"] | None = None,
        slots: Slots | None = None,
        trace: RoutingTrace | None = None,
    ) -> Float[Tensor, "B T D"]:
        """The normalised state that the shared head reads; also the `hidden` of the next depth."""
        joined = torch.cat((self.embed_norm(embedding), self.hidden_norm(hidden)), dim=-1)
        return self.norm(self.block(self.projection(joined), turn, mask, slots, trace))
