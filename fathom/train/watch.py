"""Where a step's time goes on every process, and traces of steps, for those who ask."""

import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.autograd import DeviceType  # pyright: ignore[reportPrivateImportUsage]
from torch.profiler import ProfilerActivity, profile, record_function

from fathom.parallel.world import World

MARK = "fathom::step"  # whose thread is the one that computes
WAITS = ("_c10d_functional::wait_tensor", "c10d::", "gloo:", "nccl:")
RECEIVES = ("c10d::recv", "gloo:recv", "nccl:recv")  # stages of a pipeline that wait for each other


class StepWatch:
    """Looks into the steps that the layout names; costs nothing in others. All processes take part alike.

    A breakdown is read from torch's profiler: `communication` is what exchanges take beyond the operations that run
    meanwhile, `bubble` the same of waits for another pipeline stage, `data` the wait for the batch, and `compute` the
    rest of the step. On a CPU the operations are those of the thread that computes, on a GPU the kernels. A trace is
    written in Chrome's format, one file a process.
    """

    def __init__(self, world: World, directory: Path) -> None:
        """Of a training on `world`, whose traces go into `directory`."""
        self._every, self._traced = world.layout.breakdown_every, world.layout.traced_steps
        self._world, self._directory = world, directory
        self._profile: Any = None
        self._mark: Any = None
        self._began = self._ready = 0.0

    def begin(self, step: int) -> None:
        """Before the batch of `step`, the number of steps done so far."""
        if step not in self._traced and not self._is_due(step):
            return
        if self._profile is None:
            activities = [ProfilerActivity.CPU]
            if self._world.device.type == "cuda":
                activities.append(ProfilerActivity.CUDA)
            self._profile = profile(activities=activities)
            self._profile.start()
        self._began = time.perf_counter()

    def fetched(self) -> None:
        """When the batch is there."""
        if self._profile is not None:
            self._ready = time.perf_counter()
            self._mark = record_function(MARK)
            self._mark.__enter__()

    def end(self, step: int) -> dict[str, object]:
        """After `step`: every process's seconds by kind, in the order of ranks, where a breakdown was due."""
        if self._profile is None:
            return {}
        if self._world.device.type == "cuda":
            torch.cuda.synchronize()
        self._mark.__exit__(None, None, None)
        seconds, data = time.perf_counter() - self._began, self._ready - self._began
        if step in self._traced and step + 1 in self._traced:
            return {}
        finished, self._profile = self._profile, None
        finished.stop()
        if step in self._traced:
            self._directory.mkdir(parents=True, exist_ok=True)
            name = f"steps_{self._traced.start}_{self._traced.stop}_rank_{self._world.rank}.json"
            finished.export_chrome_trace(str(self._directory / name))
            return {}
        exchanges, bubble = exposed_seconds(finished.events())
        parts = {"communication": exchanges, "bubble": bubble, "data": data}
        parts = {"compute": seconds - sum(parts.values()), **parts}
        return {"breakdown": self._world.gather({name: round(value, 6) for name, value in parts.items()})}

    def _is_due(self, step: int) -> bool:
        return bool(self._every) and (step + 1) % self._every == 0 and step not in self._traced


def exposed_seconds(events: Iterable[Any]) -> tuple[float, float]:
    """Seconds in which processes exchange and nothing is computed: of collectives, and of waits for another stage."""
    events = list(events)
    kernels = [event for event in events if event.device_type == DeviceType.CUDA and not event.is_user_annotation]
    if kernels:
        working = [event for event in kernels if "nccl" not in event.name]
        receiving = [event for event in kernels if "SendRecv" in event.name]
        exchanging = [event for event in kernels if "nccl" in event.name and "SendRecv" not in event.name]
    else:
        threads = {event.thread for event in events if event.name == MARK}
        working = [event for event in events if event.name.startswith("aten::") and event.thread in threads]
        waits = [event for event in events if event.name.startswith(WAITS)]
        receiving = [event for event in waits if event.name.startswith(RECEIVES)]
        exchanging = [event for event in waits if not event.name.startswith((*RECEIVES, "gloo:send", "c10d::send"))]
    work, bubble, exchange = (spans_of(chosen) for chosen in (working, receiving, exchanging))
    # what both do at once counts as communication
    return uncovered(exchange, work) / 1e6, uncovered(bubble, np.concatenate((work, exchange))) / 1e6


def spans_of(events: Sequence[Any]) -> NDArray[np.float64]:
    """(N, 2) begin and end of every event, in microseconds."""
    return np.array([(event.time_range.start, event.time_range.end) for event in events], float).reshape(-1, 2)


def uncovered(spans: NDArray[np.float64], by: NDArray[np.float64]) -> float:
    """How much of the union of `spans` lies outside the union of `by`."""
    return _length(np.concatenate((spans, by))) - _length(by)


def _length(spans: NDArray[np.float64]) -> float:
    """The length of a union of spans."""
    if not len(spans):
        return 0.0
    begin, end = spans[spans[:, 0].argsort()].T
    reached = np.maximum.accumulate(end)
    before = np.concatenate(([begin[0]], reached[:-1]))
    return float(np.clip(reached - np.maximum(begin, before), 0, None).sum())
