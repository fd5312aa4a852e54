"""One side of a measurement: processes of their own that work when it is their turn and sleep when it is not."""

import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any

import torch
import torch.multiprocessing as mp

from fathom.parallel.world import World, launch

Turn = Callable[[Any], bool]  # hands in what the last turn gave and sleeps until the next; False says that none comes
Job = Callable[..., None]  # job(world, turn, *args): makes ready, then `while turn(result)` works and finds `result`


class Team:
    """`workers` processes of `threads` threads each. It is ready once made; leaving its context ends it."""

    def __init__(self, name: str, workers: int, threads: int, job: Job, *args: object) -> None:
        self.name = f"{name}, {workers} x {threads}"
        context = mp.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_lead, args=(theirs, workers, threads, job, args))
        self._process.start()
        theirs.close()
        self.ready = self._receive()  # what each process handed in before its first turn

    def turn(self) -> tuple[float, list[Any]]:
        """Let every process work once: seconds until the last was done, and what each handed in."""
        started = time.perf_counter()
        self._pipe.send(True)
        results = self._receive()
        return time.perf_counter() - started, results

    def __enter__(self) -> "Team":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._process.is_alive() and error is None:
            self._pipe.send(False)
        self._pipe.close()  # where nobody waits any more, the leader stops by itself
        self._process.join(timeout=20.0)
        if self._process.is_alive():
            self._process.terminate()
            self._process.join()

    def _receive(self) -> list[Any]:
        try:
            received = self._pipe.recv()
        except EOFError:
            raise RuntimeError(f"the processes of {self.name} are gone, perhaps for want of memory") from None
        if isinstance(received, BaseException):
            raise RuntimeError(f"{self.name}: {type(received).__name__}: {received}") from received
        return received


def _lead(pipe: Connection, workers: int, threads: int, job: Job, args: tuple[object, ...]) -> None:
    """The main function of a team's first process, which starts the others."""
    try:
        launch(workers, "cpu", _work, pipe, threads, job, args)
    except (EOFError, KeyboardInterrupt):
        pass  # the measurement was broken off
    except Exception as error:  # any: it is told where the measurement runs
        pipe.send(error)


def _work(world: World, pipe: Connection, threads: int, job: Job, args: tuple[object, ...]) -> None:
    torch.set_num_threads(threads)

    def turn(result: object) -> bool:
        results = world.gather(result)
        if world.is_main:
            pipe.send(results)
        return bool(world.gather(pipe.recv() if world.is_main else None)[0])

    job(world, turn, *args)
