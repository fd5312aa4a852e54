"""How fast a layout trains: from a given share of the peak, or from what each kind of work takes on such devices.

The estimate without an MFU describes Fathom's trainer run eagerly. Its efficiencies are measured on one H200: settled
products, grouped products and attention against the data sheet, copies against its bandwidth. Whole steps take longer
than these add up to, so two terms are fitted, to the five runs of docs/results/2026-11-23-h200.md: launches count in
full, and rows on their way to experts and back count as ROUTING_TRAFFIC. With them all five come out within 10 %; what
lies far from such shapes is less certain. Exchanges that DualPipe hides behind compute count only for what is longer
than the compute.
"""

from dataclasses import dataclass

from fathom.config import ModelConfig
from fathom.plan.activations import block_bytes
from fathom.plan.count import attention_parameters, feed_forward_parts, moe_layers, mtp_layers, train_flops_per_token
from fathom.plan.hardware import Devices, Hardware
from fathom.plan.layout import Layout
from fathom.plan.messages import context_bytes
from fathom.plan.schedule import Times, bubble
from fathom.plan.share import Share, example, share_of

# Shares of the data sheet that an H200 sustains.
PRODUCTS = 0.68  # 670 of 989 TFLOP/s in BF16; power limits it
FP8_PRODUCTS = 0.50  # forward and input gradients 0.62, weight gradients 0.43
GROUPED = 0.52  # 64 experts of common widths, the mean of the three passes
ATTENTION = 0.44  # cuDNN, forward and backward
FLOAT_PRODUCTS = 0.75  # float32 outside tensor cores
COPIES = 0.89  # of the memory's bandwidth
LINKS = 0.80  # of NVLink and network, as DeepEP reaches

NODE = 8  # devices that NVLink joins
# Bytes moved by element-wise work per byte kept for the backward pass: 5 counted op by op, for the eager step, which
# kept 1.3 to 2.1 times what is kept now.
TRAFFIC = 9.0
ROUTING_TRAFFIC = 160  # bytes per element of a row for one expert; fitted: op by op it is 64, but sums are atomic
LOSS_TRAFFIC = 36  # bytes per token and word: softmax, maxima, gradients in place
UPDATE_TRAFFIC = {"adamw": 44, "adamw_bf16": 120, "muon": 60}  # bytes per parameter, clipping included
CAST_TRAFFIC = 24  # bytes per weight and micro-batch: its copy, its gradient raised to float32 and added
LAUNCH_SECONDS = 7e-6  # of one operation without a compiler, on the host; in full, as fitted, though some hides
LAUNCHES = {"dense": 130, "moe": 250, "mtp": 330}  # operations per layer, forward and backward
LOSS_LAUNCHES = 120
UPDATE_LAUNCHES = {"adamw": 1, "adamw_bf16": 14, "muon": 40}  # operations per weight


@dataclass(frozen=True, kw_only=True)
class Throughput:
    """The speed of a whole layout."""

    tokens_per_s: float
    step_seconds: float  # of one optimizer step
    bubble: float  # share of the step in which a rank of the pipeline waits
    mfu: float  # share of the peak that the model's own arithmetic uses, recomputation not counted
    parts: dict[str, float]  # seconds of a step by kind of work, on one device


def throughput(
    config: ModelConfig, layout: Layout, devices: Devices, seq_len: int, mfu: float | None = None
) -> Throughput:
    """Tokens per second of training. Raises ValueError for an `mfu` outside (0, 1]."""
    tokens = layout.rows * seq_len
    flops = tokens * train_flops_per_token(config, seq_len)
    peak = devices.hardware.peak_flops * layout.devices
    idle = idle_share(layout)
    if mfu is not None:
        if not 0 < mfu <= 1:
            raise ValueError(f"mfu={mfu} is no share of the peak; give a number above 0 and up to 1, such as 0.35")
        seconds = flops / (mfu * peak)
        parts = {"work": seconds * (1 - idle), "bubble": seconds * idle}
        return Throughput(tokens_per_s=tokens / seconds, step_seconds=seconds, bubble=idle, mfu=mfu, parts=parts)
    parts = work(config, layout, devices.hardware, seq_len)
    parts["bubble"] = sum(parts.values()) * idle / (1 - idle)
    seconds = sum(parts.values())
    return Throughput(
        tokens_per_s=tokens / seconds,
        step_seconds=seconds,
        bubble=parts["bubble"] / seconds,
        mfu=flops / (seconds * peak),
        parts=parts,
    )


def idle_share(layout: Layout) -> float:
    """The bubble of the schedule as a share of a step, with forward and both gradients equally long."""
    if layout.pipeline == 1:
        return 0.0
    part = layout.pipeline / layout.chunks  # of a chunk's time, where a rank holds the layers in two
    idle = bubble(layout.schedule, layout.pipeline, Times(F=part, B=part, W=part))
    return idle / (idle + 3 * layout.micro_batches)


def work(config: ModelConfig, layout: Layout, hardware: Hardware, seq_len: int) -> dict[str, float]:
    """Seconds of one optimizer step on one device by kind of work."""
    shares = [share_of(config, layout, rank) for rank in range(layout.pipeline)]
    tokens = layout.micro_batch_rows * seq_len / layout.context  # of one micro-batch on one device
    bandwidth = hardware.memory_bandwidth * COPIES
    times = layout.micro_batches / layout.pipeline
    parts = {name: times * seconds for name, seconds in _compute(config, layout, hardware, seq_len, tokens).items()}
    traffic = sum(
        block_bytes(config, example(config, kind), layout.precision, "none") * count
        for share in shares
        for kind, count in share.layers.items()
    )
    again = {"none": 1.0, "selective": 1.1, "full": 1.3}[layout.recompute]
    heads = 1 + config.num_nextn_predict_layers
    per_token = traffic * TRAFFIC * again + heads * LOSS_TRAFFIC * config.vocab_size
    parts["element-wise"] = times * tokens * per_token / bandwidth
    parts["routing"] = times * tokens * routed_elements(config, layout) * ROUTING_TRAFFIC * again / bandwidth
    held = max(share.dense + share.routed for share in shares)
    parts["casts"] = layout.micro_batches * CAST_TRAFFIC * held / bandwidth
    parts["optimizer"] = UPDATE_TRAFFIC[layout.optimizer] * held / layout.shard / bandwidth
    parts["messages"] = _messages(config, layout, hardware, seq_len, tokens, max(shares, key=lambda s: s.dense), parts)
    operations = [sum(LAUNCHES[kind] * count for kind, count in share.layers.items()) for share in shares]
    weights = max(sum(share.layers.values()) for share in shares) * 9 * UPDATE_LAUNCHES[layout.optimizer]
    parts["launches"] = LAUNCH_SECONDS * (layout.micro_batches * (max(operations) + heads * LOSS_LAUNCHES) + weights)
    return parts


def routed_elements(config: ModelConfig, layout: Layout) -> int:
    """Elements per token of the rows that go to experts, over all layers; in FP8 V3's exchange moves and sums them."""
    if layout.precision == "fp8":
        return 0
    return moe_layers(config) * config.moe.num_experts_per_tok * config.hidden_size


def _compute(config: ModelConfig, layout: Layout, hardware: Hardware, seq_len: int, tokens: float) -> dict[str, float]:
    """Seconds of a micro-batch's products in the whole model."""
    a, d = config.attention, config.hidden_size
    layers = [*range(config.num_hidden_layers), *mtp_layers(config)]
    feed_forward = [feed_forward_parts(config, layer, active=True) for layer in layers]
    experts = sum(part.get("routed experts", 0) for part in feed_forward)
    routers = sum(part.get("router", 0) for part in feed_forward)
    dense = len(layers) * attention_parameters(config) + sum(sum(part.values()) for part in feed_forward)
    dense += len(mtp_layers(config)) * 2 * d * d - experts - routers
    floats = hardware.fp32_flops * FLOAT_PRODUCTS
    half = hardware.bf16_flops or hardware.fp32_flops
    fast = {"fp32": floats, "bf16": half * PRODUCTS, "fp8": hardware.fp8_flops * FP8_PRODUCTS}[layout.precision]
    grouped = fast if layout.precision == "fp8" else half * GROUPED
    again = {"none": 1.0, "selective": 1.05, "full": 4 / 3}[layout.recompute]
    value = a.v_head_dim if a.kind == "mla" else a.head_dim
    # operations of causal attention: two products forward, five backward
    scores = a.num_attention_heads * (4 * a.qk_head_dim + 3 * value) * seq_len
    table = config.vocab_size * d
    halves = len(mtp_layers(config)) if layout.precision != "fp32" else 0  # of an MTP head only the gradient is float32
    floating = 6 * table * (1 + len(mtp_layers(config)) - halves) + 2 * table * halves
    return {
        "products": 6 * dense * tokens * again / fast,
        "experts": 6 * experts * tokens * again / grouped,
        "attention": len(layers) * scores * tokens * again / (half * ATTENTION),
        "router": 6 * routers * tokens * again / floats,
        "head": tokens * (floating / floats + 4 * table * halves / (half * PRODUCTS)),
    }


def _messages(
    config: ModelConfig,
    layout: Layout,
    hardware: Hardware,
    seq_len: int,
    tokens: float,
    share: Share,
    parts: dict[str, float],
) -> float:
    """Seconds of a step that a device waits for what others send."""
    near = hardware.nvlink_bandwidth or hardware.network_bandwidth or 16e9  # PCIe 4 between cards without a link
    far = hardware.network_bandwidth or near
    link = LINKS * (near if layout.devices <= NODE else far)
    d, held = config.hidden_size, share.dense + share.routed
    seconds = 0.0
    if layout.replicas * layout.context > 1:
        match layout.zero if layout.shard > 1 else 0:
            case 3:  # weights gathered twice and gradients scattered, each micro-batch
                seconds += layout.micro_batches * (2 + 2 + 4) * held / link
            case 1:  # gradients scattered, weights gathered, once a step
                seconds += (4 + 2) * held / link
            case _:  # gradients summed around a ring
                seconds += 2 * 4 * held / link
    if layout.expert > 1:
        reach = LINKS * (near if layout.expert <= NODE else far)
        code = 1 if layout.precision == "fp8" else 2
        pairs = tokens * config.moe.num_experts_per_tok * d * (1 - 1 / layout.expert)
        exchange = layout.micro_batches / layout.pipeline * moe_layers(config) * pairs * 2 * (code + 2) / reach
        hidden = sum(parts.values()) if layout.pipeline > 1 and layout.schedule in ("dualpipe", "dualpipev") else 0.0
        seconds += max(0.0, exchange - hidden)
    if layout.context > 1:
        exchange = context_bytes(config, layout.micro_batch_rows, seq_len, layout.context, bytes_each=2)
        again = 1.5 if layout.recompute == "full" else 1.0  # forward twice, backward once
        seconds += layout.micro_batches / layout.pipeline * exchange * again / (LINKS * near)
    return seconds
