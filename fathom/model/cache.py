"""The cache: what attention must remember of every past token, one vector per token and layer."""

from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fathom.config import ModelConfig
from fathom.kernels.attention import latent_attention


class LatentCache:
    """Contiguous rows of cached vectors: (rows, capacity, width) per layer.

    The width is kv_lora_rank + qk_rope_head_dim for latent attention (V2 Table 1) and keys plus values for
    grouped-query attention. MTP modules count as further layers.
    """

    def __init__(
        self,
        config: ModelConfig,
        rows: int,
        capacity: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        layers = config.num_hidden_layers + config.num_nextn_predict_layers
        shape = (rows, capacity, config.attention.cache_width)
        self.layers = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(layers)]

    @property
    def rows(self) -> int:
        return self.layers[0].shape[0]

    @property
    def capacity(self) -> int:
        return self.layers[0].shape[1]

    def grow(self, capacity: int) -> None:
        """Give every row room for `capacity` entries, keeping those it has."""
        self.layers = [F.pad(layer, (0, 0, 0, capacity - layer.shape[1])) for layer in self.layers]

    def copy_rows(self, source: Int[Tensor, " N"], target: Int[Tensor, " N"], length: int) -> None:
        """Copy the first `length` entries of rows `source` over rows `target`."""
        for layer in self.layers:
            entries = layer[:, :length]
            entries.index_copy_(0, target, entries.index_select(0, source))


@dataclass(frozen=True)
class CacheSlots:
    """Where one forward pass writes its tokens, and what they may see: rows first .. first + B of a cache."""

    cache: LatentCache
    first: int
    positions: Int[Tensor, "B T"]  # place of each new token in its row
    entries: Int[Tensor, " B*T"]  # the same, counted through all rows of the cache
    length: int  # keys to look at: the largest position + 1
    fresh: bool  # the rows were empty: new tokens see only each other

    @staticmethod
    def at(cache: LatentCache, first: int, positions: Int[Tensor, "B T"], length: int, fresh: bool) -> "CacheSlots":
        """Slots for new tokens at `positions`; a query sees every key up to its own position."""
        rows = torch.arange(first, first + positions.shape[0], device=positions.device).unsqueeze(1)
        entries = (rows * cache.capacity + positions).flatten()
        return CacheSlots(cache, first, positions, entries, length, fresh)

    @cached_property
    def mask(self) -> Bool[Tensor, "B T S"]:
        """True where a query sees a key."""
        return torch.arange(self.length, device=self.positions.device) <= self.positions.unsqueeze(-1)

    @cached_property
    def bias(self) -> Float[Tensor, "B T S"]:
        """The mask as a summand of scores: -inf where a query does not see a key."""
        return torch.where(self.mask, 0.0, float("-inf"))

    def extend(self, layer: int, vectors: Float[Tensor, "B T W"]) -> Float[Tensor, "B S W"]:
        """Write what one layer caches of the new tokens and return all entries that may be seen."""
        rows = self.cache.layers[layer]
        rows.view(-1, rows.shape[-1]).index_copy_(0, self.entries, vectors.flatten(0, 1).to(rows.dtype))
        return rows.narrow(0, self.first, vectors.shape[0]).narrow(1, 0, self.length)

    def attend(
        self, layer: int, latents: Float[Tensor, "B T W"], q: Float[Tensor, "B T H W"], rank: int, scale: float
    ) -> Float[Tensor, "B T H R"]:
        """Cache the latents of the new tokens, and absorbed attention of their queries over all they may see."""
        return latent_attention(q, self.extend(layer, latents), rank, scale, self.bias)
