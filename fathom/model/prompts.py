"""The cache's form for training: rows that keep, with their gradient, what every layer would cache of them."""

from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fathom.kernels.attention import latent_attention


@dataclass(frozen=True)
class Prompts:
    """Rows that others go on from: whose of them each continues, and how many of its tokens are real."""

    slots: "RowSlots"
    owners: Int[Tensor, " B"]
    lengths: Int[Tensor, " B"]


@dataclass(frozen=True)
class RowSlots:
    """Rows of one pass; a token sees its row up to itself and, where there are `prompts`, the whole prompt before."""

    positions: Int[Tensor, "B T"]  # place of each token, its prompt counted
    prompts: Prompts | None = None
    kept: dict[int, Tensor] = field(default_factory=dict[int, Tensor])  # of every layer, (B, T, W)

    @property
    def fresh(self) -> bool:
        """Whether tokens see only each other."""
        return self.prompts is None

    @cached_property
    def mask(self) -> Bool[Tensor, "B T S"]:
        """True where a token sees another."""
        rows, width = self.positions.shape
        device = self.positions.device
        own = torch.ones(width, width, dtype=torch.bool, device=device).tril().expand(rows, -1, -1)
        if self.prompts is None:
            return own
        places = torch.arange(self.prompts.slots.positions.shape[1], device=device)
        before = (places < self.prompts.lengths.unsqueeze(1)).unsqueeze(1).expand(-1, width, -1)
        return torch.cat((before, own), dim=-1)

    def extend(self, layer: int, vectors: Float[Tensor, "B T W"]) -> Float[Tensor, "B S W"]:
        """Keep a layer's vectors and return all that may be seen."""
        self.kept[layer] = vectors
        if self.prompts is None:
            return vectors
        return torch.cat((self.prompts.slots.kept[layer].index_select(0, self.prompts.owners), vectors), dim=1)

    def attend(
        self, layer: int, latents: Float[Tensor, "B T W"], q: Float[Tensor, "B T H W"], rank: int, scale: float
    ) -> Float[Tensor, "B T H R"]:
        """Keep the latents, and absorbed attention of the tokens' queries over all they may see."""
        bias = torch.where(self.mask, 0.0, float("-inf"))
        return latent_attention(q, self.extend(layer, latents), rank, scale, bias)
