"""One side of a measurement: processes of their own that work when it is their turn and sleep when it is not."""

import os
import socket
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from fathom.parallel.world import World

Turn = Callable[[Any], bool]  # hands in what the last turn gave and sleeps until the next; False says that none comes
Job = Callable[..., None]  # job(world, turn, *args): makes ready, then `while turn(result)` works and finds `result`


class Team:
    """`workers` processes of `threads` threads each. It is ready once made; leaving its context ends it."""

    def __init__(self, name: str, workers: int, threads: int, job: Job, *args: object) -> None:
        self.name = f"{name}, {workers} x {threads}"
        self._folder = tempfile.TemporaryDirectory(prefix="fathom-team-")
        meeting, port = Path(self._folder.name) / "store", _free_port()
        context = mp.get_context("spawn")
        self._pipes: list[Connection] = []
        self._processes: list[mp.Process] = []
        for rank in range(workers):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_main, args=(theirs, rank, workers, meeting, port, threads, job, args), daemon=True
            )
            process.start()
            theirs.close()
            self._pipes.append(ours)  # pyright: ignore[reportArgumentType]
            self._processes.append(process)  # pyright: ignore[reportArgumentType]
        try:
            self.ready = self._receive()  # what each process handed in before its first turn
        except BaseException:
            self.close(patience=0.0)
            raise

    def turn(self) -> tuple[float, list[Any]]:
        """Let every process work once: seconds until the last was done, and what each handed in."""
        started = time.perf_counter()
        for pipe in self._pipes:
            pipe.send(True)
        results = self._receive()
        return time.perf_counter() - started, results

    def __enter__(self) -> "Team":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close(patience=10.0 if error is None else 0.0)

    def close(self, patience: float) -> None:
        """End the processes, those that do not within `patience` seconds by force."""
        for pipe in self._pipes:
            with suppress(OSError):
                pipe.send(False)
            pipe.close()
        for process in self._processes:
            process.join(timeout=patience)
            if process.is_alive():
                process.terminate()
                process.join()
        self._folder.cleanup()

    def _receive(self) -> list[Any]:
        """One result of each process, in the order of ranks; the first error ends the wait for the others."""
        results: dict[int, Any] = {}
        while len(results) < len(self._pipes):
            missing = [pipe for rank, pipe in enumerate(self._pipes) if rank not in results]
            for pipe in wait(missing):
                assert isinstance(pipe, Connection)
                try:
                    received = pipe.recv()
                except EOFError:
                    raise RuntimeError(f"a process of {self.name} is gone, perhaps for want of memory") from None
                if isinstance(received, Exception):
                    raise RuntimeError(f"{self.name}: {type(received).__name__}: {received}") from received
                results[self._pipes.index(pipe)] = received
        return [results[rank] for rank in range(len(self._pipes))]


def _main(
    pipe: Connection,
    rank: int,
    size: int,
    meeting: Path,
    port: int,
    threads: int,
    job: Job,
    args: tuple[object, ...],
) -> None:
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    place["OMP_NUM_THREADS"] = threads
    os.environ.update({name: str(value) for name, value in place.items()})  # where peers look, as under torchrun
    torch.set_num_threads(threads)

    def turn(result: object) -> bool:
        pipe.send(result)
        return bool(pipe.recv())

    try:
        if size > 1:
            dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=size)
        job(World(rank, size, torch.device("cpu")), turn, *args)
    except (EOFError, KeyboardInterrupt):
        pass  # the measurement was broken off
    except Exception as error:
        with suppress(OSError):
            pipe.send(RuntimeError(f"{type(error).__name__}: {error}"))


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
