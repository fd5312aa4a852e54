"""A layout in a word: `pp4ep2dp1` for four processes along the layers, two along the experts, one replica of these."""

import re
from dataclasses import asdict, replace
from math import gcd

from fathom.config import ModelConfig, ParallelConfig
from fathom.plan.hardware import Devices, hardware_named
from fathom.plan.layout import Layout, check

WAYS = {"pp": "pipeline", "ep": "expert", "dp": "data", "fs": "shard", "cp": "context"}
FIELDS = "pp (pipeline), ep (expert), dp (data), fs (shard) and cp (context)"


def parse_layout(word: str, **options: object) -> ParallelConfig:
    """The layout that a word says, with `options` for the fields that are no ways; ways that it leaves out are one.

    `dp` counts replicas of all weights: experts lie among shards and pieces of rows first, and where these are too few
    among more processes with rows of their own, so pp4ep2dp1 takes 8. Without `dp` there are as many as the processes
    allow. Raises ValueError for a word that says no layout.
    """
    parts: list[tuple[str, str]] = re.findall(r"([a-z]+)(\d+)", word.lower())
    named = [name for name, _ in parts]
    if not parts or "".join(name + ways for name, ways in parts) != word.lower():
        raise ValueError(f"--layout {word!r} is no layout; write {FIELDS}, each with a number, such as pp4ep2dp1")
    for name in named:
        if name not in WAYS:
            raise ValueError(f"--layout {word!r} names {name!r}, which is none of {FIELDS}")
        if named.count(name) > 1:
            raise ValueError(f"--layout {word!r} gives {name} twice; give it once")
    ways = {WAYS[name]: int(number) for name, number in parts}
    if ways.get("data") == 0:
        raise ValueError(f"--layout {word!r} has no replica; leave dp out for as many as there are processes for")
    inner = ways.get("shard", 1) * ways.get("context", 1)
    if "data" in ways and inner and (expert := ways.get("expert", 1)):
        ways["data"] *= expert // gcd(expert, inner)
    return ParallelConfig(**ways, **options)  # pyright: ignore[reportArgumentType]


def check_layout(
    parallel: ParallelConfig,
    config: ModelConfig,
    processes: int,
    micro_batches: int,
    micro_batch_rows: int,
    seq_len: int,
) -> ParallelConfig:
    """The layout with its number of replicas, if the planner lets `processes` processes train `config` so.

    Raises ValueError with the rule that it breaks and the nearest choice.
    """
    data = parallel.data or max(1, processes // parallel.model_ways)
    shared = ("shard", "zero", "expert", "pipeline", "context", "schedule", "recompute")
    fields = {name: value for name, value in asdict(parallel).items() if name in shared}
    layout = Layout(
        data=data, micro_batches=micro_batches, micro_batch_rows=micro_batch_rows, precision="fp32", **fields
    )
    devices = Devices(hardware=hardware_named("laptop"), count=processes)
    check(layout, config, devices, layout.rows, seq_len)
    return replace(parallel, data=data)
