"""The transformer: latent or grouped-query attention, experts, multi-token prediction, and its cache."""

from fathom.model.cache import CacheSlots, EngineSlots, LatentCache, PagedCache, PagedSlots, Slots
from fathom.model.moe import update_selection_bias
from fathom.model.routing import RoutingTrace
from fathom.model.streamed import Reader, Streamed, streams
from fathom.model.transformer import Transformer

__all__ = [
    "CacheSlots",
    "EngineSlots",
    "LatentCache",
    "PagedCache",
    "PagedSlots",
    "Reader",
    "RoutingTrace",
    "Slots",
    "Streamed",
    "Transformer",
    "streams",
    "update_selection_bias",
]
