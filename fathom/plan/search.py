"""All layouts of so many devices that fit, the fastest first."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from fathom.config import Config, ModelConfig
from fathom.plan.hardware import Devices
from fathom.plan.layout import Layout, Recompute, check
from fathom.plan.memory import Memory, capacity, memory
from fathom.plan.throughput import Throughput, throughput
from fathom.presets import PRESETS

SHOWN = 10
RECOMPUTE: tuple[Recompute, ...] = ("none", "selective", "full")  # the less, the faster
PIPELINED = ("1f1b", "dualpipev")  # schedules that are tried
NODE = 8


@dataclass(frozen=True, kw_only=True)
class Found:
    """A layout that fits, and what it would do."""

    layout: Layout
    memory: Memory
    throughput: Throughput

    def hours(self, tokens: float) -> float:
        """Wall-clock time of so many tokens."""
        return tokens / self.throughput.tokens_per_s / 3600


def search(
    config: ModelConfig,
    devices: Devices,
    rows: int,
    seq_len: int,
    base: Layout | None = None,
    mfu: float | None = None,
    shown: int = SHOWN,
) -> list[Found]:
    """Layouts of `devices` for steps of `rows` rows, best first; precision and optimizer are those of `base`.

    Of micro-batches the largest that fits is kept, and of recomputation the least. Raises ValueError where nothing
    fits.
    """
    base = base or Layout()
    room = capacity(devices.hardware.memory_bytes)
    found: list[Found] = []
    leanest: tuple[float, Layout] | None = None
    for spread in _spreads(config, base, devices.count, rows, seq_len):
        largest = 0  # rows at a time that fit with less recomputation
        for recompute in RECOMPUTE:
            sizes = [s for s in _sizes(replace(spread, recompute=recompute), rows) if s.micro_batch_rows > largest]
            sizes = [size for size in sizes if _is_possible(size, config, devices, rows, seq_len)]
            if not sizes:
                continue
            least = memory(config, sizes[-1], seq_len).total
            leanest = min(leanest or (math.inf, spread), (least, sizes[-1]), key=lambda pair: pair[0])
            for layout in sizes if least <= room else ():
                needed = memory(config, layout, seq_len)
                if needed.total <= room:
                    largest = layout.micro_batch_rows
                    speed = throughput(config, layout, devices, seq_len, mfu)
                    found.append(Found(layout=layout, memory=needed, throughput=speed))
                    break
    if not found:
        if leanest is None:
            raise ValueError(
                f"{rows} rows cannot be shared out among {devices}; choose a multiple of {devices.count} rows a step"
            )
        raise ValueError(
            f"no layout of {devices} holds steps of {seq_len} tokens a row: the leanest, {describe(leanest[1])}, takes "
            f"{leanest[0] / 2**30:.1f} GiB a device, which has {room / 2**30:.1f}; use more devices or shorter rows"
        )
    found.sort(key=lambda f: (-f.throughput.tokens_per_s, f.memory.total))
    return found[:shown]


def _spreads(config: ModelConfig, base: Layout, count: int, rows: int, seq_len: int) -> Iterator[Layout]:
    """Every way to share out the devices, sizes and recomputation left open."""
    for pipeline in divisors(count, 64):
        for context in divisors(count // pipeline, 16 if seq_len > 16_384 else 1):
            replicas = count // (pipeline * context)
            if rows % replicas:
                continue
            for schedule in PIPELINED if pipeline > 1 else PIPELINED[:1]:
                for shard, zero in _sharings(replicas, pipeline):
                    for expert in _expert_ways(config, replicas * context):
                        yield replace(
                            base,
                            data=replicas // shard,
                            shard=shard,
                            zero=zero,
                            expert=expert,
                            pipeline=pipeline,
                            context=context,
                            schedule=schedule,
                            micro_batches=1,
                            micro_batch_rows=1,
                        )


def _sharings(replicas: int, pipeline: int) -> Iterator[tuple[int, int]]:
    """Nothing shared, masters shared, and, without a pipeline, weights shared."""
    yield 1, 1
    for shard in {replicas, min(replicas, NODE)} - {1}:
        if replicas % shard == 0:
            yield shard, 1
            if pipeline == 1:
                yield shard, 3


def _expert_ways(config: ModelConfig, group: int) -> list[int]:
    """One way, a node's, and as many as there can be."""
    experts = config.moe.n_routed_experts
    most = math.gcd(experts, group) if experts else 1
    return sorted({1, math.gcd(most, NODE), math.gcd(most, 64), most})


def _sizes(spread: Layout, rows: int) -> Iterator[Layout]:
    """From the largest micro-batch to one row."""
    each = rows // spread.replicas
    for size in reversed(divisors(each, 64)):
        yield replace(spread, micro_batch_rows=size, micro_batches=each // size)


def _is_possible(layout: Layout, config: ModelConfig, devices: Devices, rows: int, seq_len: int) -> bool:
    try:
        check(layout, config, devices, rows, seq_len)
    except ValueError:
        return False
    return True


def divisors(number: int, most: int) -> list[int]:
    """The divisors of `number` up to `most`, ascending."""
    return [value for value in range(1, min(number, most) + 1) if number % value == 0]


def describe(layout: Layout) -> str:
    """The fields of a layout that differ from one plain device's."""
    plain = vars(Layout())
    changed = {name: value for name, value in vars(layout).items() if value != plain[name]}
    return " ".join(f"{name}={value}" for name, value in changed.items()) or "one device, one row at a time"


def is_trainable(layout: Layout) -> bool:
    """Whether `fathom pretrain` runs the layout: replicas that sum their gradients, in BF16 or float32."""
    plain = Layout(
        data=layout.data,
        micro_batches=layout.micro_batches,
        micro_batch_rows=layout.micro_batch_rows,
        precision="fp32" if layout.precision == "fp32" else "bf16",
        optimizer="adamw" if layout.optimizer == "adamw" else "adamw_bf16",
    )
    return layout == replace(plain, zero=layout.zero, schedule=layout.schedule)


def is_preset(config: Config) -> bool:
    """Whether a preset's name says all of a config that the flags of `command` do not."""
    base, train = PRESETS.get(config.preset), config.pretrain
    if base is None:
        return False
    said = {name: getattr(train, name) for name in ("batch_rows", "micro_batch_rows", "seq_len", "steps")}
    optimizer = replace(base.pretrain.optimizer, moments=train.optimizer.moments)
    pretrain = replace(base.pretrain, optimizer=optimizer, **said)
    return config == replace(base, pretrain=pretrain, dtype=config.dtype, dollars_per_hour=config.dollars_per_hour)


def command(config: Config, layout: Layout, rows: int, seq_len: int) -> str:
    """The torchrun command that trains on such a layout.

    Of a config that is no preset's it names only what the plan has set; the run's directory has to hold the rest.
    Raises ValueError where `is_trainable` says no.
    """
    if not is_trainable(layout):
        raise ValueError(
            f"fathom pretrain does not run {describe(layout)}: it has replicas only; choose data={layout.devices} alone"
        )
    each = divisors(layout.devices, NODE)[-1]
    nodes = layout.devices // each
    where = "--standalone" if nodes == 1 else f"--nnodes {nodes} --rdzv_backend c10d --rdzv_endpoint HOST:29500"
    flags = {
        **({"preset": config.preset} if is_preset(config) else {}),
        "pretrain.batch_rows": rows,
        "pretrain.micro_batch_rows": layout.micro_batch_rows,
        "pretrain.seq_len": seq_len,
        "pretrain.optimizer.moments": "float32" if layout.optimizer == "adamw" else "bfloat16",
        "dtype": "float32" if layout.precision == "fp32" else "bfloat16",
    }
    given = " ".join(f"--{name} {value}" for name, value in flags.items())
    return f"torchrun {where} --nproc_per_node {each} -m fathom pretrain {given}"
