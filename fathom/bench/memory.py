"""What real training steps take, beside what the planner says: peak memory and tokens/s of one device.

Every case runs Fathom's own step on random tokens. A case that fails is reported with its error, and the others go on.
"""

import gc
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch

from fathom.bench.rounds import describe_conditions
from fathom.config import ModelConfig, OptimizerConfig
from fathom.model import Transformer
from fathom.parallel.world import World, choose_device
from fathom.plan.count import main_parameters, mtp_parameters
from fathom.plan.hardware import HARDWARE, Devices, Hardware
from fathom.plan.layout import Layout
from fathom.plan.memory import memory
from fathom.plan.throughput import throughput
from fathom.presets import preset
from fathom.text.packing import Batch
from fathom.train.loss import Denominators, language_losses
from fathom.train.step import Rates, TrainState, train_step

log = logging.getLogger(__name__)

GIB = 2**30
WARM_UP = 2  # steps that do not count: the first has no gradients yet, and kernels are loaded
LEAST_STEPS, MOST_STEPS = 3, 20
CASE_SECONDS = 8.0  # of counted steps
ALL_SECONDS = 110.0  # behind which no further case begins
MTP_WEIGHT = 0.3


@dataclass(frozen=True)
class Case:
    """A shape, and the rows and tokens of one step."""

    name: str
    model: ModelConfig
    rows: int
    seq_len: int
    moments: Literal["float32", "bfloat16"] = "bfloat16"


def cases() -> list[Case]:
    """Experts and latent attention at two sizes, the same with MTP, a dense shape, and wide experts in few layers."""
    small = preset("small").model
    return [
        Case("small", small, rows=8, seq_len=4096),
        Case("small, short rows", small, rows=4, seq_len=2048, moments="float32"),
        Case("llama-3.2-1b", preset("llama-3.2-1b").model, rows=2, seq_len=4096, moments="float32"),
        Case("moonlight, 5 layers", replace(preset("moonlight").model, num_hidden_layers=5), rows=4, seq_len=4096),
        Case("small with MTP", replace(small, num_nextn_predict_layers=1), rows=4, seq_len=4096),
    ]


def main(peer: str = "none", chosen: Sequence[Case] | None = None, device: str = "auto") -> dict[str, Any]:
    """Peak memory and tokens/s of every case, predicted and measured.

    On a CPU there is no count of allocated memory, so only speed is measured.
    """
    if peer != "none":
        raise ValueError(f"the bench of memory has no peer, not {peer!r}; leave --peer out")
    conditions = describe_conditions()
    world = World(0, 1, choose_device(device))
    hardware = hardware_of(world.device)
    started = time.perf_counter()
    found: list[dict[str, Any]] = []
    for case in cases() if chosen is None else chosen:
        if time.perf_counter() - started > ALL_SECONDS:
            found.append({"name": case.name, "error": f"not begun: {ALL_SECONDS:.0f} s were over"})
            continue
        log.info("training %s on %d rows of %d tokens", case.name, case.rows, case.seq_len)
        found.append(_run(case, world, hardware))
    return {"bench": "memory", "device": hardware.name, "cases": found, **conditions}


def hardware_of(device: torch.device) -> Hardware:
    """The planner's figures of this device, by the name that its driver gives it."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        for hardware in sorted(HARDWARE.values(), key=lambda h: -len(h.name)):
            if hardware.name.replace(" ", "").lower() in name.replace(" ", "").lower():
                return hardware
        raise ValueError(f"the planner knows no {name}; its devices are {', '.join(HARDWARE)}")
    return HARDWARE["laptop"]


def layout_of(case: Case, hardware: Hardware) -> Layout:
    """One device, all rows at once, in the precision of the trainer there."""
    return Layout(
        micro_batch_rows=case.rows,
        precision="bf16" if hardware.bf16_flops else "fp32",
        optimizer="adamw" if case.moments == "float32" else "adamw_bf16",
    )


def _run(case: Case, world: World, hardware: Hardware) -> dict[str, Any]:
    result: dict[str, Any] = {"name": case.name, "rows": case.rows, "seq_len": case.seq_len}
    try:
        result["predicted"] = predict(case, hardware)
        result["measured"] = measure(case, world)
    except Exception as error:  # whatever one case meets, the figures of the others are worth having
        log.warning("%s failed: %s", case.name, error)
        result["error"] = f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"
        return result
    finally:
        gc.collect()
        if world.device.type == "cuda":
            torch.cuda.empty_cache()
    result["error_of_prediction"] = {
        name: round(result["predicted"][name] / value - 1, 4)
        for name in ("peak_gib", "state_gib", "tokens_per_s")
        if (value := result["measured"][name])
    }
    return result


def predict(case: Case, hardware: Hardware) -> dict[str, Any]:
    """The planner's figures: the peak and what stays between steps, the speed, and the parts of both."""
    layout = layout_of(case, hardware)
    needed = memory(case.model, layout, case.seq_len)
    speed = throughput(case.model, layout, Devices(count=1, hardware=hardware), case.seq_len)
    masters = 4 * (main_parameters(case.model) + mtp_parameters(case.model))
    return {
        "peak_gib": round(needed.total / GIB, 3),
        "state_gib": round((masters + needed.optimizer) / GIB, 3),
        "moment": needed.moment,
        "parts_gib": {name: round(value / GIB, 3) for name, value in needed.parts.items()},
        "tokens_per_s": round(speed.tokens_per_s),
        "parts_ms": {name: round(value * 1e3, 2) for name, value in speed.parts.items()},
    }


def measure(case: Case, world: World) -> dict[str, Any]:
    """Train some steps: the peak of those behind the warm-up, and their tokens/s."""
    on_gpu = world.device.type == "cuda"
    optimizer = OptimizerConfig(lr=1e-4, moments=case.moments)
    with torch.device(world.device):
        model = Transformer(case.model)
    model = model.to(world.device)  # a few buffers are made on the CPU whatever the default
    model.initialise(torch.Generator(world.device).manual_seed(0))
    state = TrainState.start(model, optimizer)
    batch = random_batch(case)
    denominators = Denominators.of([batch], len(model.mtp), world)
    rates = Rates(lr=optimizer.lr, clip_norm=optimizer.clip_norm, bias_speed=case.model.moe.bias_update_speed)
    dtype = torch.bfloat16 if on_gpu else torch.float32

    def step() -> float:
        report = train_step(
            state,
            [batch],
            lambda b: language_losses(model, b, denominators, MTP_WEIGHT, world.device),
            rates,
            world,
            dtype,
        )
        return report.parts["loss"]

    losses = [step() for _ in range(WARM_UP)]
    resident = 0
    if on_gpu:
        torch.cuda.synchronize()
        resident = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
    times: list[float] = []
    while len(times) < LEAST_STEPS or (sum(times) < CASE_SECONDS and len(times) < MOST_STEPS):
        started = time.perf_counter()
        losses.append(step())
        if on_gpu:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    seconds = sorted(times)[len(times) // 2]
    return {
        "peak_gib": round(torch.cuda.max_memory_allocated() / GIB, 3) if on_gpu else None,
        "state_gib": round(resident / GIB, 3) if on_gpu else None,
        "reserved_gib": round(torch.cuda.max_memory_reserved() / GIB, 3) if on_gpu else None,
        "tokens_per_s": round(batch.tokens.size / seconds),
        "step_ms": round(seconds * 1e3, 2),
        "steps": len(times),
        "first_loss": round(losses[0], 4),
        "last_loss": round(losses[-1], 4),
    }


def random_batch(case: Case) -> Batch:
    """Rows of random tokens, every one of which counts."""
    tokens = np.random.default_rng(0).integers(0, case.model.vocab_size, (case.rows, case.seq_len + 1))
    shape = (case.rows, case.seq_len)
    places = np.broadcast_to(np.arange(case.seq_len), shape)
    return Batch(tokens[:, :-1], tokens[:, 1:], np.ones(shape, np.float32), places, np.zeros(shape, np.int64))
