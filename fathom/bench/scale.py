"""Weak scaling: as many rows on every process, more processes; speed of each, and what it sends beside the formula."""

import logging
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from statistics import median
from typing import Any

import numpy as np
import torch

from fathom.bench.peers import require_peer
from fathom.bench.rounds import describe_conditions
from fathom.bench.shape import SHAPE, describe_shape, random_tokens
from fathom.config import ModelConfig, OptimizerConfig, ParallelConfig
from fathom.model import Transformer
from fathom.model.parallelize import parallelize
from fathom.parallel.mesh import build_mesh
from fathom.parallel.world import World, choose_device, is_torchrun, launch
from fathom.plan.layout import Layout
from fathom.plan.messages import expert_bytes, state_bytes, sum_bytes
from fathom.text.packing import Batch
from fathom.train.loss import Denominators, language_losses
from fathom.train.step import Rates, StepReport, TrainState, train_step

log = logging.getLogger(__name__)

RANKS = (1, 2, 4)
ROWS, SEQ_LEN, STEPS = 8, 128, 5  # rows of each process
KINDS = ("data", "shard", "expert")
OPTIMIZER = OptimizerConfig(lr=1e-3)
UNTRIED = "bench scale had not been run on GPUs when it was written: look at its figures with care"


def main(
    peer: str,
    config: ModelConfig = SHAPE,
    ranks: Sequence[int] = RANKS,
    rows: int = ROWS,
    seq_len: int = SEQ_LEN,
    steps: int = STEPS,
    device: str | None = None,
) -> dict[str, Any]:
    """Tokens/s of every process and bytes a step that it sends, for replicas, shards (ZeRO-1) and spread experts.

    Processes are started here, on the CPU unless `device` asks for GPUs, of which each gets one; under torchrun those
    that it started are measured, on GPUs where there are some. On GPUs it has not been run yet. A step is forward,
    backward, clipping and AdamW in float32.
    """
    require_peer("scale", peer, "none")
    config = replace(config, num_nextn_predict_layers=0)  # the step has the next token's loss alone
    conditions = describe_conditions()
    table: list[dict[str, Any]] = []
    device = device or ("auto" if is_torchrun() else "cpu")
    on_gpus = choose_device(device).type == "cuda"
    for size in sizes_here(ranks, on_gpus):
        table += launch(size, device, measure, config, rows, seq_len, steps, gpu_workers=size if on_gpus else 1)
    return {"bench": "scale", "model": describe_shape(config), "rows": rows, "seq_len": seq_len, "table": table} | (
        conditions | ({"note": UNTRIED} if any(line["device"] == "cuda" for line in table) else {})
    )


def sizes_here(ranks: Sequence[int], on_gpus: bool) -> tuple[int, ...]:
    """The numbers of processes to measure: torchrun's own, or those of `ranks`, on GPUs as many as there are."""
    if is_torchrun():
        return (int(os.environ["WORLD_SIZE"]),)
    return tuple(size for size in ranks if not on_gpus or size <= torch.cuda.device_count())


def measure(world: World, config: ModelConfig, rows: int, seq_len: int, steps: int) -> list[dict[str, Any]]:
    """A line for every kind of parallelism over all processes; alone there is one line."""
    lines: list[dict[str, Any]] = []
    for kind in KINDS if world.size > 1 else ("alone",):
        ways = world.size
        layout = {"shard": ParallelConfig(shard=ways), "expert": ParallelConfig(expert=ways)}.get(
            kind, ParallelConfig()
        )
        spread = replace(world, mesh=build_mesh(layout, ways, world.device), layout=layout)
        seconds, report = _train(spread, config, rows, seq_len, steps)
        sent = [sum(of_rank.values()) for of_rank in world.gather(report.sent)]  # pyright: ignore
        line = {
            "kind": kind,
            "ranks": ways,
            "device": world.device.type,
            "tokens_per_s_per_rank": round(rows * seq_len / seconds),
            "bytes_sent_per_rank": round(sum(sent) / ways),
            "bytes_by_formula": round(formula(kind, config, rows * seq_len, ways, report)),
        }
        log.info("%s", ", ".join(f"{name} {value}" for name, value in line.items()))
        lines.append(line)
    return lines


def formula(kind: str, config: ModelConfig, tokens: int, ways: int, report: StepReport) -> float:
    """Bytes that a process sends in a step: gradients, weights and tokens, and one message of losses and loads."""
    layout = {
        "data": Layout(data=ways, precision="fp32"),
        "shard": Layout(shard=ways, zero=1, precision="fp32"),
        "expert": Layout(data=ways, expert=ways, precision="fp32"),
    }.get(kind)
    if layout is None:
        return 0.0
    state = sum(state_bytes(config, layout).values())
    exchanged = expert_bytes(config, tokens, ways) if kind == "expert" else 0.0
    return state + exchanged + sum_bytes(len(report.parts) + report.loads.numel(), ways)


def _train(world: World, config: ModelConfig, rows: int, seq_len: int, steps: int) -> tuple[float, StepReport]:
    """Median seconds of a step behind the first, and the last step's report."""
    model = Transformer(config)
    model.initialise(torch.Generator().manual_seed(0))
    state = TrainState.start(parallelize(model.to(world.device), world), OPTIMIZER)
    tokens = random_tokens(config.vocab_size, rows * world.size, seq_len + 1).chunk(world.size)[world.rank].numpy()
    places = np.broadcast_to(np.arange(seq_len), (rows, seq_len))
    ones, segments = np.ones((rows, seq_len), np.float32), np.zeros((rows, seq_len), np.int64)
    batch = Batch(tokens[:, :-1], tokens[:, 1:], ones, places, segments)
    denominators = Denominators.of([batch], 0, world)
    rates = Rates(lr=OPTIMIZER.lr, clip_norm=OPTIMIZER.clip_norm, bias_speed=1e-3)

    def step() -> tuple[float, StepReport]:
        world.barrier()
        began = time.perf_counter()
        report = train_step(
            state, [batch], lambda b: language_losses(model, b, denominators, 0.0, world.device), rates, world
        )  # ends with reading the losses, which waits for a GPU
        return time.perf_counter() - began, report

    step()
    measured = [step() for _ in range(steps)]
    return median(seconds for seconds, _ in measured), measured[-1][1]
