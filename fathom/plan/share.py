"""What one rank of a pipeline holds of the model: its layers, its tables, its part of the experts."""

from collections import Counter
from dataclasses import dataclass
from typing import Literal

from fathom.config import ModelConfig
from fathom.plan.count import block_parameters, feed_forward_parts
from fathom.plan.cut import cut_layers
from fathom.plan.layout import Layout

Kind = Literal["dense", "moe", "mtp"]


@dataclass(frozen=True, kw_only=True)
class Share:
    """One rank's part of the model, in elements."""

    layers: dict[Kind, int]
    last: Kind  # of the layer that the backward pass meets first
    has_head: bool
    dense: int  # parameters that every device of this rank has
    tables: int  # of these, embedding and head, which no product reads in BF16
    routed: int  # parameters of the device's own routed experts
    largest: int  # of one tensor


def share_of(config: ModelConfig, layout: Layout, rank: int) -> Share:
    """Layers as `cut_layers` has them; the embedding with the first, the head and the MTP modules with the last.

    A rank with the head of a tied embedding, or with an MTP module, has the embedding's table too.
    """
    chunks, cut = layout.chunks_of(rank), cut_layers(config, layout.chunks)
    has_first, has_head = 0 in chunks, layout.chunks - 1 in chunks
    modules = has_head and config.num_nextn_predict_layers > 0
    held = [layer for chunk in chunks for layer in cut[chunk]]
    held += [config.num_hidden_layers + depth for depth in range(config.num_nextn_predict_layers)] * has_head
    table, d = config.vocab_size * config.hidden_size, config.hidden_size
    has_embedding = has_first or (has_head and (config.tie_word_embeddings or modules))
    tables = table * (has_embedding + (has_head and not config.tie_word_embeddings))
    kinds: Counter[Kind] = Counter(kind_of(config, layer) for layer in held)
    dense, routed = tables + d * has_head, 0
    for kind, times in kinds.items():
        experts = routed_parameters(config, kind)
        own = 2 * d * d + 3 * d if kind == "mtp" else 0
        dense += times * (block_parameters(config, example(config, kind), active=False) - experts + own)
        routed += times * experts // layout.expert
    return Share(
        layers=dict(kinds),
        last=kind_of(config, max(held)),
        has_head=has_head,
        dense=dense,
        tables=tables,
        routed=routed,
        largest=max(table if tables else 0, *(largest_weight(config, layout, kind) for kind in kinds)),
    )


def kind_of(config: ModelConfig, layer: int) -> Kind:
    """What a layer is; those behind the last are the MTP modules'."""
    if layer >= config.num_hidden_layers:
        return "mtp"
    return "moe" if config.is_moe_layer(layer) else "dense"


def example(config: ModelConfig, kind: Kind) -> int:
    """The number of a layer of that kind."""
    match kind:
        case "dense":
            return 0
        case "moe":
            return config.num_hidden_layers - 1
        case "mtp":
            return config.num_hidden_layers


def routed_parameters(config: ModelConfig, kind: Kind) -> int:
    """All routed experts of one such layer."""
    return feed_forward_parts(config, example(config, kind), active=False).get("routed experts", 0)


def largest_weight(config: ModelConfig, layout: Layout, kind: Kind) -> int:
    """Elements of the largest tensor of such a layer: gate and up are one, of all experts on the device together."""
    experts = routed_parameters(config, kind)
    return 2 * (experts // layout.expert if experts else 3 * config.hidden_size * config.intermediate_size) // 3


def in_flight(layout: Layout, rank: int) -> float:
    """Micro-batches whose activations a rank holds at once, a mean over its chunks.

    1F1B and DualPipe as published (V3 Table 2); the zero-bubble schedules hold as much as 1F1B's fullest rank.
    """
    ranks = layout.pipeline
    if ranks == 1:
        return 1
    match layout.schedule:
        case "1f1b":
            held: float = ranks - rank
        case "zb1p" | "zbv":
            held = ranks
        case "dualpipe":
            held = (ranks + 1) / 2
        case "dualpipev":
            held = (2 * ranks + 1) / 2
    return min(held, layout.micro_batches)
