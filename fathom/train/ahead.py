"""What would keep a GPU waiting for its host: batches that are not ready, and garbage collected amid a step."""

import gc
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import torch

from fathom.text.packing import Batch

BatchOf = Callable[[int, int], Batch]  # of a step, with so many rows
COLLECT_EVERY = 200  # steps


class Ahead:
    """Gives the batches that `batch_of` makes; that of a step to come is made in the background, once it is known."""

    def __init__(self, batch_of: BatchOf, pool: ThreadPoolExecutor | None) -> None:
        self._batch_of, self._pool = batch_of, pool
        self._begun: dict[tuple[int, int], Future[Batch]] = {}

    def begin(self, step: int, rows: int) -> None:
        """Make this batch in the background, if there is one."""
        if self._pool is not None:
            self._begun[step, rows] = self._pool.submit(self._batch_of, step, rows)

    def __call__(self, step: int, rows: int) -> Batch:
        begun = self._begun.pop((step, rows), None)
        return self._batch_of(step, rows) if begun is None else begun.result()


@contextmanager
def fetched_ahead(batch_of: BatchOf, device: torch.device) -> Generator[Ahead]:
    """Batches fetched while a GPU computes; a CPU has no core to spare for it."""
    if device.type != "cuda":
        yield Ahead(batch_of, None)
        return
    with ThreadPoolExecutor(1, thread_name_prefix="fathom-batches") as pool:
        yield Ahead(batch_of, pool)


@contextmanager
def collected_between_steps(device: torch.device) -> Generator[Callable[[int], None]]:
    """Gives a function to call behind every step, which alone collects garbage: a pause there is one on every process.

    On a CPU nothing changes.
    """
    if device.type != "cuda" or not gc.isenabled():
        yield lambda step: None
        return

    def tidy(step: int) -> None:
        if step % COLLECT_EVERY == 0:
            gc.collect()

    gc.collect()
    gc.disable()
    try:
        yield tidy
    finally:
        gc.enable()
