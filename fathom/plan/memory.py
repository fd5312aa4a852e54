"""The memory that a training step takes of the fullest device, part by part.

One device is Fathom's own trainer: float32 masters that are the weights, BF16 copies of them made in every forward
pass, float32 gradients, and a loss whose gradients are made on the way forward, some rows of logits at a time. A
process alone takes memory for gradients as the backward pass comes to them; several keep theirs from step to step.
State shared among devices follows V3 (3.2.3, 3.3.3) and FSDP.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

from fathom.config import ModelConfig
from fathom.plan.activations import STATISTIC, Widths, block_bytes, feed_forward_bytes, shared_bytes
from fathom.plan.count import block_parameters
from fathom.plan.layout import Layout
from fathom.plan.share import Kind, Share, example, in_flight, largest_weight, routed_parameters, share_of

FLOAT, HALF = 4, 2  # bytes of an element
IDS = 6 * 8  # bytes per token of ids, targets, weights, positions and of what the loss looks up with
LOGITS = 1 << 28  # most that the loss makes at a time
LOGIT_CHUNKS = 8  # pieces in which the loss takes its rows in float32
WORKSPACE = 96 * 2**20  # cuBLAS: 32 MiB for the forward and for the backward thread, and as much for cuBLASLt
RESERVE = 0.04  # share of a device that the driver, NCCL and gaps between blocks take


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes at the fullest moment of a step, on the fullest device."""

    weights: float  # masters or their shards, and the copies that products read
    gradients: float
    optimizer: float  # moments, and masters where they lie apart from the weights
    activations: float  # kept for the backward pass, the loss's probabilities included
    cache: float  # keys and values; none in training
    buffers: float  # held for a moment: gradients on their way, messages, workspaces
    moment: str  # the fullest one: forward, loss, backward or optimizer

    @property
    def parts(self) -> dict[str, float]:
        """The parts that sum to the total."""
        return {name: value for name, value in vars(self).items() if name != "moment"}

    @property
    def total(self) -> float:
        return sum(self.parts.values())


def memory(config: ModelConfig, layout: Layout, seq_len: int) -> Memory:
    """What rows of `seq_len` tokens take of the fullest device."""
    return max((_of_rank(config, layout, seq_len, rank) for rank in range(layout.pipeline)), key=lambda m: m.total)


def capacity(memory_bytes: float) -> float:
    """What a step may take of a device with `memory_bytes`."""
    return memory_bytes * (1 - RESERVE)


# ---- one rank -------------------------------------------------------------------------------------------------------


class _Moment(NamedTuple):
    name: str
    copies: float  # of the weights
    gradients: float
    kept: float  # activations
    passing: float


def _of_rank(config: ModelConfig, layout: Layout, seq_len: int, rank: int) -> Memory:
    share = share_of(config, layout, rank)
    tokens = layout.micro_batch_rows * seq_len / layout.context
    weights, gradients, optimizer = _state(share, layout)
    of_layers = sum(
        times * block_bytes(config, example(config, kind), layout.precision, layout.recompute, layout.expert > 1)
        for kind, times in share.layers.items()
    )
    kept = tokens * (of_layers * in_flight(layout, rank) + IDS)
    held = 0.0 if layout.devices == 1 else gradients  # a process alone has none between its steps
    moments = [
        *_loss(config, layout, share, tokens, kept, held),
        *_backward(config, layout, share, tokens, kept, held),
        _Moment("optimizer", 0.0, gradients, 0.0, _update(layout, share)),
    ]
    moment = max(moments, key=lambda m: m.copies + m.gradients + m.kept + m.passing)
    return Memory(
        weights=weights + moment.copies,
        gradients=moment.gradients,
        optimizer=optimizer,
        activations=moment.kept,
        cache=0.0,
        buffers=moment.passing + _messages(config, layout, share, tokens) + WORKSPACE,
        moment=moment.name,
    )


def _state(share: Share, layout: Layout) -> tuple[float, float, float]:
    """Bytes of weights, gradients, and what the optimizer has of its own."""
    weights = gradients = optimizer = 0.0
    pieces = (
        (share.dense, share.tables, layout.shard),
        (share.routed, 0, max(1, layout.shard // layout.expert)),
    )
    for elements, tables, ways in pieces:
        match layout.optimizer:
            case "adamw":
                moments = 2 * FLOAT * elements
            case "adamw_bf16":
                moments = 2 * HALF * elements
            case "muon":  # one momentum a matrix; tables stay with AdamW
                moments = FLOAT * (elements + tables)
        apart = layout.shard > 1 and layout.zero == 1  # masters are shared out, and every device has a copy of all
        of_copy = {"fp32": FLOAT, "bf16": HALF, "fp8": 1}[layout.precision]
        weights += of_copy * (elements - tables) + HALF * tables if apart else FLOAT * elements / ways
        gradients += FLOAT * elements / (1 if layout.zero != 3 else ways)
        optimizer += (moments + FLOAT * elements * apart) / ways
    return weights, gradients, optimizer


def _copies(share: Share, layout: Layout) -> float:
    """Copies that products read: made of the masters in a forward pass, each kept until its gradient is known."""
    if layout.shard > 1 and layout.precision != "fp32":
        return 0.0  # gathered layer by layer, or what shared masters leave behind anyway
    matrices = share.dense - share.tables + share.routed
    # grouped products are BF16 whatever the precision
    return {"fp32": HALF * share.routed, "bf16": HALF * matrices, "fp8": float(matrices)}[layout.precision]


def _loss(
    config: ModelConfig, layout: Layout, share: Share, tokens: float, kept: float, held: float
) -> Iterator[_Moment]:
    """The end of the forward pass and the beginning of the backward pass, at the head."""
    if not share.has_head:
        return
    d, v, heads = config.hidden_size, config.vocab_size, 1 + config.num_nextn_predict_layers
    stream = Widths.of(layout.precision).stream
    copies, table, hidden = _copies(share, layout), FLOAT * v * d, stream * d * tokens
    kept += heads * (hidden + 2 * STATISTIC * tokens)  # the states before the final norm
    kept += (heads - 1) * 4 * hidden  # what MTP modules join: two states before their norms, and both behind them
    if layout.precision == "fp32":  # the probabilities, and the loss's own copy of the states
        kept += heads * (FLOAT * v * tokens + hidden)
        # one chunk's logits come while those before are still there
        yield _Moment("forward", copies, held, kept, hidden + 2 * FLOAT * v * tokens / LOGIT_CHUNKS)
        yield _Moment("loss", copies, held, kept, hidden * (1 + 1 / LOGIT_CHUNKS) + table)
        return
    kept += heads * (hidden + table)  # the gradients of states and head, which the loss has made already
    rows = min(tokens, LOGITS // v)
    chunk = rows * v * (FLOAT + HALF + HALF * (tokens > rows))  # with the gradient, and that of the chunk before
    product = rows * (v + d) * HALF + table
    yield _Moment("forward", copies, held, kept, hidden + HALF * v * d + max(chunk, product))
    yield _Moment("loss", copies, held, kept, hidden + table * (heads > 1))


def _backward(
    config: ModelConfig, layout: Layout, share: Share, tokens: float, kept: float, held: float
) -> Iterator[_Moment]:
    """The first and the last layer of every kind, the last kind first."""
    fresh, copies, d = layout.devices == 1, _copies(share, layout), config.hidden_size
    # a table that is used twice waits with the first half of its gradient
    twice = config.tie_word_embeddings + config.num_nextn_predict_layers
    waiting = FLOAT * config.vocab_size * d * twice * share.has_head
    if fresh and not config.tie_word_embeddings:
        held += FLOAT * config.vocab_size * d * share.has_head
    order: tuple[Kind, ...] = ("mtp", "moe", "dense")
    for kind in order:
        times = share.layers.get(kind, 0)
        layer = example(config, kind)
        one = block_parameters(config, layer, active=False) if times else 0
        experts = routed_parameters(config, kind) if times else 0
        one += experts // layout.expert - experts
        each = tokens * block_bytes(config, layer, layout.precision, layout.recompute, layout.expert > 1)
        of_copy = copies and {"fp32": HALF * experts // layout.expert, "bf16": HALF * one, "fp8": one}[layout.precision]
        for passed in sorted({0, times - 1} if times else ()):
            behind = copies - passed * of_copy, held + FLOAT * one * passed * fresh, kept - passed * each
            yield from _layer_back(config, layout, kind, tokens, behind, waiting)
        copies, held, kept = copies - times * of_copy, held + FLOAT * one * times * fresh, kept - times * each


def _layer_back(
    config: ModelConfig, layout: Layout, kind: Kind, tokens: float, before: tuple[float, float, float], waiting: float
) -> Iterator[_Moment]:
    """The backward pass in a layer's feed-forward part, and in its attention; before it: copies, gradients, kept."""
    a, d, layer = config.attention, config.hidden_size, example(config, kind)
    copies, held, kept = before
    widths, fresh = Widths.of(layout.precision), layout.devices == 1
    part = feed_forward_bytes(config, layer, widths, True, layout.expert > 1) * tokens
    if layout.recompute == "none":
        after = kept - part
    else:  # made anew, one layer at a time
        waiting += tokens * block_bytes(config, layer, layout.precision, "none", layout.expert > 1)
        after = kept
    stream, largest = widths.stream * d * tokens, largest_weight(config, layout, kind)
    experts = routed_parameters(config, kind) // layout.expert
    if experts:  # all at once: what is kept, the gradients of both weights, and those of the experts' rows
        moe = config.moe
        rows = HALF * moe.num_experts_per_tok * tokens * (d + 4 * moe.moe_intermediate_size)
        shared = (kept - after > 0) * shared_bytes(config, widths, whole=True) * tokens
        passing = (HALF + FLOAT) * largest + FLOAT * (experts - largest) + rows + 2 * stream
        yield _Moment("backward", copies, held, kept - shared, waiting + passing)
    else:
        own = 3 * d * config.intermediate_size
        passing = (HALF + FLOAT) * largest + FLOAT * (own - largest) * fresh + 2 * stream
        yield _Moment("backward", copies - min(copies, HALF * own), held, after, waiting + passing)
    feed_forward = experts or 3 * d * config.intermediate_size
    released = min(copies, HALF * feed_forward)
    # cuDNN sums the gradient of the queries in float32
    heads = tokens * a.num_attention_heads * a.qk_head_dim * (FLOAT + 3 * HALF)
    yield _Moment("backward", copies - released, held + FLOAT * feed_forward * fresh, after, waiting + heads + stream)


def _update(layout: Layout, share: Share) -> float:
    """What the optimizer's step needs for a moment, or the sum of gradients before it."""
    message = FLOAT * (share.dense + share.routed) if layout.data * layout.context > 1 and layout.shard == 1 else 0.0
    scratch = 3 * HALF if layout.optimizer == "muon" else 0  # it iterates on BF16, a tensor at a time
    return max(message, scratch * share.largest / layout.shard)


def _messages(config: ModelConfig, layout: Layout, share: Share, tokens: float) -> float:
    """Buffers of the exchanges between devices while a micro-batch is under way."""
    d, total = config.hidden_size, 0.0
    if layout.shard > 1 and layout.zero == 3:  # two layers gathered, and one layer's gradient
        largest = max(
            block_parameters(config, example(config, kind), active=False)
            - routed_parameters(config, kind) * (1 - 1 / layout.expert)
            for kind in share.layers
        )
        total += (2 * HALF + HALF + FLOAT) * largest
    if layout.expert > 1 and share.routed:  # tokens sent and received
        code = 1 if layout.precision == "fp8" else HALF
        total += (code + HALF) * config.moe.num_experts_per_tok * d * tokens
    if layout.pipeline > 1:  # a state and a gradient, in and out
        total += 4 * HALF * d * tokens
    if layout.context > 1:  # what the whole row's keys and values grow from
        total += 2 * HALF * config.attention.cache_width * tokens * layout.context
    return total


# ---- making it fit --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Fix:
    """One change of a layout after which a step fits."""

    change: str  # "recompute=selective"
    layout: Layout
    memory: Memory


def fix(config: ModelConfig, layout: Layout, seq_len: int, memory_bytes: float) -> Fix | None:
    """The mildest single change that makes a step fit into devices of `memory_bytes`; None if it fits, or none does.

    Changes that cost little speed come first, those that take more devices last.
    """
    if memory(config, layout, seq_len).total <= capacity(memory_bytes):
        return None
    for changed in _changes(config, layout):
        needed = memory(config, changed, seq_len)
        if needed.total <= capacity(memory_bytes):
            return Fix(change=describe_change(layout, changed), layout=changed, memory=needed)
    return None


def describe_change(old: Layout, new: Layout) -> str:
    """The fields that differ, as `field=value`."""
    return ", ".join(f"{name}={value}" for name, value in vars(new).items() if value != vars(old)[name])


def _changes(config: ModelConfig, layout: Layout) -> Iterator[Layout]:
    rows = layout.micro_batch_rows
    while rows % 2 == 0:
        rows //= 2
        yield replace(layout, micro_batch_rows=rows, micro_batches=layout.rows // (layout.replicas * rows))
    if layout.recompute == "none":
        yield replace(layout, recompute="selective")
    if layout.optimizer == "adamw":
        yield replace(layout, optimizer="adamw_bf16")
    if layout.data > 1:
        zero = layout.zero or 1
        yield replace(layout, data=1, shard=layout.replicas, zero=zero)
    group = layout.replicas * layout.context
    for expert in range(2 * layout.expert, group + 1, layout.expert):
        if config.moe.n_routed_experts % expert == 0 and group % expert == 0:
            yield replace(layout, expert=expert)
    if layout.shard > 1 and layout.zero == 1:
        yield replace(layout, zero=3)
    if layout.recompute != "full":
        yield replace(layout, recompute="full")
    if layout.data > 1:
        yield replace(layout, data=1, shard=layout.replicas, zero=3)
    for times in (2, 4, 8, 16, 32, 64, 128, 256, 512, 1024):  # more devices
        yield replace(layout, shard=layout.shard * times, zero=3)
