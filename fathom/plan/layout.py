"""How a training step is spread over devices, and which ways of spreading it are possible."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from fathom.config import ModelConfig
from fathom.config.checks import require_choice, require_positive
from fathom.plan.hardware import Devices
from fathom.plan.schedule import check_micro_batches, least_micro_batches

Schedule = Literal["1f1b", "zb1p", "zbv", "dualpipe", "dualpipev"]
Recompute = Literal["none", "selective", "full"]
Precision = Literal["fp32", "bf16", "fp8"]
Optimizer = Literal["adamw", "adamw_bf16", "muon"]

TWO_CHUNKS = ("zbv", "dualpipe", "dualpipev")  # schedules in which a rank holds two pieces of the model


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Ways of every kind of parallelism; their product is the number of devices.

    Experts are spread within the replicas of everything else, as in V3: 64 ways among the 128 of ZeRO-1 (V3 3.2).
    """

    data: int = 1  # replicas, each with its own rows
    shard: int = 1  # devices, each with its own rows, that share the training state (FSDP, ZeRO)
    zero: Literal[0, 1, 3] = 1  # what they share: nothing, masters and moments, or gradients and weights too
    expert: int = 1  # devices over which the routed experts are spread, among data x shard x context
    pipeline: int = 1  # devices over which the layers are spread
    context: int = 1  # devices over which each row is spread
    schedule: Schedule = "1f1b"  # of the pipeline
    micro_batches: int = 1  # forward passes of each replica in one optimizer step
    micro_batch_rows: int = 1  # rows of one such pass
    recompute: Recompute = "none"  # selective: norms, latents' expansion and SwiGLU (V3 3.2.3); full: whole layers
    precision: Precision = "bf16"  # of products; fp8 also keeps their inputs so (V3 3.3.3)
    optimizer: Optimizer = "adamw_bf16"  # adamw_bf16: both moments in BF16 (V3 3.3.3)

    def __post_init__(self) -> None:
        require_positive(
            "layout",
            data=self.data,
            shard=self.shard,
            expert=self.expert,
            pipeline=self.pipeline,
            context=self.context,
            micro_batches=self.micro_batches,
            micro_batch_rows=self.micro_batch_rows,
        )
        require_choice("layout", "schedule", self.schedule, ("1f1b", "zb1p", "zbv", "dualpipe", "dualpipev"))
        require_choice("layout", "recompute", self.recompute, ("none", "selective", "full"))
        require_choice("layout", "precision", self.precision, ("fp32", "bf16", "fp8"))
        require_choice("layout", "optimizer", self.optimizer, ("adamw", "adamw_bf16", "muon"))
        if self.zero not in (0, 1, 3):
            raise ValueError(
                f"layout.zero={self.zero} is none of 0, 1, 3; choose 1 (masters and moments) or 3 (weights too)"
            )
        if self.shard > 1 and self.zero == 0:
            raise ValueError(
                f"layout.shard={self.shard} shares the training state, and zero=0 shares nothing; choose zero=1, or "
                f"data={self.data * self.shard} with shard=1"
            )

    @property
    def replicas(self) -> int:
        """Devices that each take rows of their own."""
        return self.data * self.shard

    @property
    def devices(self) -> int:
        """Devices in all; expert parallelism lives on the same ones."""
        return self.replicas * self.context * self.pipeline

    @property
    def rows(self) -> int:
        """Rows of one optimizer step."""
        return self.replicas * self.micro_batches * self.micro_batch_rows

    @property
    def chunks(self) -> int:
        """Pieces into which the pipeline cuts the model; one of them is not less than one layer."""
        return self.pipeline * 2 if self.pipeline > 1 and self.schedule in ("zbv", "dualpipev") else self.pipeline

    def chunks_of(self, rank: int) -> list[int]:
        """The pieces that a rank of the pipeline holds: two that mirror each other where the schedule says so."""
        mirrored = self.pipeline > 1 and self.schedule in TWO_CHUNKS
        return [rank, self.chunks - 1 - rank] if mirrored else [rank]


def check(layout: Layout, config: ModelConfig, devices: Devices, rows: int, seq_len: int) -> None:
    """Raise ValueError, with the rule and the nearest valid choice, where `layout` cannot be.

    `rows` are those of one optimizer step, `seq_len` the tokens of each.
    """
    _check_devices(layout, devices)
    _check_precision(layout, devices)
    _check_experts(layout, config)
    _check_pipeline(layout, config)
    if seq_len % (2 * layout.context) and layout.context > 1:
        fitting = nearest(layout.context, lambda ways: ways == 1 or not seq_len % (2 * ways))
        raise ValueError(
            f"context={layout.context} cuts each row into {2 * layout.context} equal pieces, an early and a late one a "
            f"device, but seq_len={seq_len} does not divide so; choose context={fitting}"
        )
    _check_rows(layout, rows)


def _check_devices(layout: Layout, devices: Devices) -> None:
    if layout.devices == devices.count:
        return
    product = "data x shard x context x pipeline"
    rest = layout.devices // layout.data
    if devices.count % rest == 0:
        advice = f"choose data={devices.count // rest}"
    else:
        advice = f"choose a number of devices that {rest} divides, the nearest is {_multiple(devices.count, rest)}"
    raise ValueError(
        f"the layout takes {layout.devices} devices ({product} = {layout.data} x {layout.shard} x {layout.context} x "
        f"{layout.pipeline}), but there are {devices.count}; {advice}"
    )


def _check_precision(layout: Layout, devices: Devices) -> None:
    hardware = devices.hardware
    flops = {"fp32": hardware.fp32_flops, "bf16": hardware.bf16_flops, "fp8": hardware.fp8_flops}
    if not flops[layout.precision]:
        best = "bf16" if hardware.bf16_flops else "fp32"
        raise ValueError(f"{hardware.name} has no units for precision={layout.precision}; choose {best}")


def _check_experts(layout: Layout, config: ModelConfig) -> None:
    experts, group = config.moe.n_routed_experts, layout.replicas * layout.context
    if layout.expert == 1:
        return
    if not experts:
        raise ValueError(f"expert={layout.expert} spreads experts, but the model has none; choose expert=1")
    if experts % layout.expert or group % layout.expert:
        fitting = nearest(layout.expert, lambda ways: not experts % ways and not group % ways)
        raise ValueError(
            f"expert={layout.expert} must divide the {experts} routed experts and the {group} devices of "
            f"data x shard x context; choose expert={fitting}"
        )


def _check_pipeline(layout: Layout, config: ModelConfig) -> None:
    if layout.pipeline == 1:
        return
    layers = config.num_hidden_layers
    if layout.chunks > layers:
        most = layers * layout.pipeline // layout.chunks
        even = most - most % 2 if layout.schedule == "dualpipe" else most
        raise ValueError(
            f"pipeline={layout.pipeline} with {layout.schedule} cuts the model into {layout.chunks} pieces of whole "
            f"layers, but it has {layers}; choose pipeline={max(1, even)}"
        )
    check_micro_batches(layout.schedule, layout.pipeline, layout.micro_batches)


def _check_rows(layout: Layout, rows: int) -> None:
    if layout.rows == rows:
        return
    at_once = layout.replicas * layout.micro_batch_rows
    least = least_micro_batches(layout.schedule, layout.pipeline) if layout.pipeline > 1 else 1
    step = 2 if layout.pipeline > 1 and layout.schedule == "dualpipe" else 1
    times = max(least, _multiple(max(1, round(rows / at_once)), step))
    fits = times * at_once == rows
    advice = (
        f"choose micro_batches={times}" if fits else f"the nearest is {times * at_once} rows, micro_batches={times}"
    )
    raise ValueError(
        f"a step of {rows} rows is not data x shard x micro_batches x micro_batch_rows = {layout.data} x "
        f"{layout.shard} x {layout.micro_batches} x {layout.micro_batch_rows} = {layout.rows}; {advice}"
    )


def nearest(wanted: int, fits: Callable[[int], bool]) -> int:
    """The number nearest to `wanted` that fits, the smaller of two; 1 must fit."""
    for distance in range(wanted):
        for value in (wanted - distance, wanted + distance):
            if fits(value):
                return value
    return 1


def _multiple(value: int, of: int) -> int:
    """The multiple of `of` nearest to `value`, at least one time it."""
    return max(1, round(value / of)) * of
