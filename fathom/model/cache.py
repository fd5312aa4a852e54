"""The cache: what attention must remember of every past token, one vector per token and layer.

Two forms with the same duties: rows that lie in one stretch each, which a CPU reads as a view, and pages of which every
row has some, which waste no room and can be shared.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Int16, Int32, UInt8
from torch import Tensor

from fathom.config import ModelConfig
from fathom.kernels.attention import latent_attention, paged_latent_attention
from fathom.kernels.latents import dequantize_latents, latent_bytes, quantize_latents
from fathom.model.prompts import RowSlots


class LatentCache:
    """Contiguous rows of cached vectors: (rows, capacity, width) per layer.

    The width is kv_lora_rank + qk_rope_head_dim for latent attention (V2 Table 1) and keys plus values for
    grouped-query attention. MTP modules count as further layers.
    """

    experts: Int16[Tensor, "rows capacity LK"] | None = None  # of every place, once `note_experts` was called

    def __init__(
        self,
        config: ModelConfig,
        rows: int,
        capacity: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        shape = (rows, capacity, config.attention.cache_width)
        self.layers = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(cached_layers(config))]

    @property
    def rows(self) -> int:
        return self.layers[0].shape[0]

    @property
    def capacity(self) -> int:
        return self.layers[0].shape[1]

    def grow(self, capacity: int) -> None:
        """Give every row room for `capacity` entries, keeping those it has."""
        more = (0, 0, 0, capacity - self.capacity)
        self.experts = None if self.experts is None else F.pad(self.experts, more)
        self.layers = [F.pad(layer, more) for layer in self.layers]

    def copy_rows(self, source: Int[Tensor, " N"], target: Int[Tensor, " N"], length: int) -> None:
        """Copy the first `length` entries of rows `source` over rows `target`."""
        for layer in (*self.layers, *_if_any(self.experts)):
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


class PagedCache:
    """Pages of cached vectors, (pages, page_size, width) per layer as in `LatentCache`; tables say whose they are.

    With `fp8` they hold what `quantize_latents` packs. New tokens then see each other so too, as whoever comes later
    will see them: how a text was cut into passes does not show in it.
    """

    experts: Int16[Tensor, "pages page_size LK"] | None = None

    def __init__(
        self,
        config: ModelConfig,
        pages: int,
        page_size: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        fp8: bool = False,
    ) -> None:
        a = config.attention
        self.rank = a.kv_lora_rank if fp8 else None  # of packed latents
        width, dtype = (
            (latent_bytes(a.kv_lora_rank, a.qk_rope_head_dim), torch.uint8) if fp8 else (a.cache_width, dtype)
        )
        shape = (pages, page_size, width)
        self.layers = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(cached_layers(config))]

    @property
    def pages(self) -> int:
        return self.layers[0].shape[0]

    @property
    def page_size(self) -> int:
        return self.layers[0].shape[1]

    def copy_pages(self, source: Int[Tensor, " N"], target: Int[Tensor, " N"]) -> None:
        """Copy whole pages `source` over pages `target`."""
        for layer in (*self.layers, *_if_any(self.experts)):
            layer.index_copy_(0, target, layer.index_select(0, source))


@dataclass(frozen=True)
class PagedSlots:
    """Where one forward pass writes its tokens, and what they may see: the pages that a table gives each row.

    The new tokens of a row stand at consecutive places.
    """

    cache: PagedCache
    table: Int32[Tensor, "B C"]  # page c of a row holds its places c * page_size and on
    positions: Int[Tensor, "B T"]  # place of each new token in its row
    entries: Int[Tensor, " B*T"]  # the same, counted through all pages of the cache
    length: int  # keys to look at: the largest position + 1
    fresh: bool  # the rows were empty: new tokens see only each other

    @staticmethod
    def at(
        cache: PagedCache, table: Int32[Tensor, "B C"], positions: Int[Tensor, "B T"], length: int, fresh: bool
    ) -> "PagedSlots":
        """Slots for new tokens at `positions`; a query sees every key up to its own position."""
        size = cache.page_size
        pages = table.long().gather(1, positions // size)
        entries = (pages * size + positions % size).flatten()
        return PagedSlots(
            cache, table[:, : -(-length // size)], positions, entries, length, fresh and cache.rank is None
        )

    @cached_property
    def mask(self) -> Bool[Tensor, "B T S"]:
        """True where a query sees a key."""
        return torch.arange(self.length, device=self.positions.device) <= self.positions.unsqueeze(-1)

    @cached_property
    def seen(self) -> Int32[Tensor, " B"]:
        """Keys that the first new token of a row sees, itself among them; each further one sees one more."""
        return (self.positions[:, 0] + 1).int()

    def extend(self, layer: int, vectors: Float[Tensor, "B T W"]) -> Float[Tensor, "B S W"]:
        """Write what one layer caches of the new tokens and return a copy of all entries that may be seen."""
        seen = self._write(layer, vectors)[self.table.long()].flatten(1, 2)[:, : self.length]
        rank = self.cache.rank
        return seen if rank is None else dequantize_latents(seen, rank, vectors.shape[-1] - rank).to(vectors.dtype)

    def attend(
        self, layer: int, latents: Float[Tensor, "B T W"], q: Float[Tensor, "B T H W"], rank: int, scale: float
    ) -> Float[Tensor, "B T H R"]:
        """Cache the latents of the new tokens, and absorbed attention of their queries over all they may see."""
        pages = self._write(layer, latents)
        return paged_latent_attention(q, pages, self.table, self.seen, rank, scale)

    def _write(self, layer: int, vectors: Float[Tensor, "B T W"]) -> Float[Tensor, "P S W"] | UInt8[Tensor, "P S Y"]:
        pages, rank, entries = self.cache.layers[layer], self.cache.rank, vectors.flatten(0, 1)
        entries = entries.to(pages.dtype) if rank is None else quantize_latents(entries, rank)
        pages.view(-1, pages.shape[-1]).index_copy_(0, self.entries, entries)
        return pages


Slots = CacheSlots | PagedSlots | RowSlots


def note_experts(slots: Slots, chosen: Sequence[Int[Tensor, "B T K"]]) -> None:
    """Keep beside the new tokens' entries the experts that each MoE layer chose for them; the first call makes room."""
    cache, rows = slots.cache, torch.cat([layer.flatten(0, 1) for layer in chosen], dim=1).short()
    if cache.experts is None:
        cache.experts = rows.new_zeros(*cache.layers[0].shape[:2], rows.shape[1])
    cache.experts.view(-1, rows.shape[1]).index_copy_(0, slots.entries, rows)


def noted_experts(slots: Slots, layers: int) -> Int16[Tensor, "N L K"]:
    """What `note_experts` kept of the tokens of `slots`, row by row; `layers` are the MoE layers."""
    assert slots.cache.experts is not None
    return slots.cache.experts.flatten(0, 1)[slots.entries].unflatten(1, (layers, -1))


def _if_any(table: Tensor | None) -> list[Tensor]:
    return [] if table is None else [table]


def cached_layers(config: ModelConfig) -> int:
    """Layers that a cache has: MTP modules count as further ones."""
    return config.num_hidden_layers + config.num_nextn_predict_layers
