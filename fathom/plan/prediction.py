"""Predictions kept in a run directory, and set beside what the run measured."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from fathom.plan.hardware import Devices
from fathom.plan.layout import Layout
from fathom.plan.memory import Memory
from fathom.plan.throughput import Throughput
from fathom.runs import Record, Run, write_whole

GIB = 2**30
WARM_UP = 0.1  # share of the steps whose speed does not count: kernels load and are chosen


@dataclass(frozen=True, kw_only=True)
class Compared:
    """One figure before and after the run."""

    name: str
    predicted: float
    measured: float

    @property
    def error(self) -> float:
        """How far the prediction lies from the measurement, as a share of it; above zero it is too high."""
        return self.predicted / self.measured - 1


def prediction(
    layout: Layout, devices: Devices, memory: Memory, throughput: Throughput, tokens: float, stage: str = "pretrain"
) -> Record:
    """What a run of `tokens` tokens will be like, as plain values."""
    hours = tokens / throughput.tokens_per_s / 3600
    return {
        "stage": stage,
        "devices": f"{devices.count}x{devices.hardware.name}",
        "layout": asdict(layout),
        "tokens": tokens,
        "tokens_per_s": throughput.tokens_per_s,
        "step_seconds": throughput.step_seconds,
        "mfu": throughput.mfu,
        "peak_memory_gib": memory.total / GIB,
        "hours": hours,
        "dollars": hours * devices.count * devices.hardware.dollars_per_hour,
    }


def path_of(run: Run) -> Path:
    """The file of a run's predictions."""
    return run.path / "prediction.json"


def keep(run: Run, predicted: Record) -> None:
    """Keep a prediction in the run's directory, in place of an earlier one for the same stage."""
    kept = {**_read(run), predicted["stage"]: predicted}
    write_whole(path_of(run), json.dumps(kept, indent=2) + "\n")


def compare(run: Run) -> dict[str, list[Compared]]:
    """Every stage with a prediction and a measurement: its figures. Raises ValueError where either is missing."""
    kept = _read(run)
    if not kept:
        raise ValueError(f"{run.path} holds no prediction; keep one with `fathom plan --out {run.path}` before the run")
    found = {stage: _of_stage(run, stage, predicted) for stage, predicted in kept.items()}
    found = {stage: figures for stage, figures in found.items() if figures}
    if not found:
        raise ValueError(f"{run.path} has trained no step of {', '.join(kept)}; run that stage and compare again")
    return found


def _read(run: Run) -> Record:
    if not path_of(run).exists():
        return {}
    try:
        return json.loads(path_of(run).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path_of(run)} is not valid JSON: {error}; delete it and predict again") from error


def _of_stage(run: Run, stage: str, predicted: Record) -> list[Compared]:
    measured = measure(run, stage)
    figures: list[Compared] = []
    for name, value in measured.items():
        if value and isinstance(predicted.get(name), int | float):
            figures.append(Compared(name=name, predicted=float(predicted[name]), measured=value))
    return figures


def measure(run: Run, stage: str) -> dict[str, float]:
    """A stage's figures under the names of its prediction; of a stage without steps, none."""
    lines: list[dict[str, Any]] = run.read_metrics(stage)
    if not lines:
        return {}
    steady = lines[int(len(lines) * WARM_UP) :]
    speeds = [line["tokens_per_s"] for line in steady if line.get("tokens_per_s")]
    measured = {
        "tokens": float(sum(line.get("tokens", 0) for line in lines)),
        "tokens_per_s": median(speeds) if speeds else 0.0,
        "step_seconds": median(line.get("seconds", 0.0) for line in steady),
        "mfu": median(line.get("mfu") or 0.0 for line in steady),
    }
    for line in run.read_ledger(stage)[-1:]:
        measured |= {
            "peak_memory_gib": line.get("peak_memory_gib", 0.0) / line.get("processes", 1),  # booked as the sum
            "hours": line.get("seconds", 0.0) / 3600,
            "dollars": line.get("dollars", 0.0),
        }
    return measured
