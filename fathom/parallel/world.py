"""The processes that train together: who they are, how they sum, how they start and fail."""

import contextlib
import ctypes
import os
import pickle
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cached_property
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TypeVar, cast

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor
from torch.distributed.elastic.multiprocessing.errors import record

from fathom.config import ParallelConfig
from fathom.parallel.meeting import meet
from fathom.parallel.mesh import Axis, Mesh, build_mesh, replicas

R = TypeVar("R")

PATIENCE = 5.0  # seconds that the others have to say what went wrong
ELASTIC_PATIENCE = timedelta(days=1)  # of processes for one that prepares the data; torchrun sees who has failed
INTERRUPTED = 130  # exit code after Ctrl-C


@dataclass(frozen=True)
class World:
    """One process's place among `size` equal ones."""

    rank: int
    size: int
    device: torch.device
    mesh: Mesh = field(default_factory=Mesh)
    layout: ParallelConfig = field(default_factory=ParallelConfig)

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and talks to the user."""
        return self.rank == 0

    @cached_property
    def everyone(self) -> Axis:
        """All processes."""
        return Axis(self.rank, self.size)

    @property
    def rows(self) -> Axis:
        """The processes with rows of their own: all of them, unless they share rows or layers."""
        return self.everyone if self.mesh.dense is None else self.mesh.rows

    @property
    def tokens(self) -> Axis:
        """The processes with tokens of their own, which all hold the same layers."""
        return self.everyone if self.mesh.dense is None else self.mesh.tokens

    def sent(self) -> dict[str, int]:
        """Bytes that this process has sent so far, by what they carried."""
        axes = {id(axis): axis for axis in (self.everyone, *self.mesh.axes.values())}
        return dict(sum((axis.sent for axis in axes.values()), Counter[str]()))

    def sum(self, tensors: Sequence[Tensor]) -> None:
        """Replace every tensor, on every process, by the sum over the processes: one message for all of them."""
        self.everyone.sum(tensors)

    def sum_numbers(self, *numbers: float) -> tuple[float, ...]:
        """The sums of a few numbers over the processes."""
        return self.everyone.sum_numbers(*numbers)

    def gather(self, value: object) -> list[object]:
        """Every process's value, in the order of ranks, on every process."""
        return self.everyone.gather(value)

    def barrier(self) -> None:
        """Wait until every process is here."""
        self.everyone.barrier()


def choose_device(name: str) -> torch.device:
    """The device that `auto`, `cpu` or `cuda` means here."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device=cuda was asked for, but torch sees no GPU; use --device cpu or install a CUDA build")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def backend_of(device: torch.device) -> str:
    """What carries messages: NCCL those of GPUs' tensors, gloo what lies in the processor's memory."""
    return "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"


def is_torchrun() -> bool:
    """Whether torchrun started this process, and others beside it."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def is_restarted() -> bool:
    """Whether torchrun started this process after one before it had failed."""
    return is_torchrun() and int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def is_first() -> bool:
    """Whether this process will be the first of its world, which is not there yet."""
    return not is_torchrun() or os.environ["RANK"] == "0"


def processes_here(device: torch.device, workers: int, gpu_workers: int) -> int:
    """How many processes to start on this machine: `workers` on its CPU, `gpu_workers` on its GPUs."""
    if device.type != "cuda":
        if gpu_workers > 1:
            raise ValueError(
                f"gpu_workers={gpu_workers} asks for GPUs, but this computes on the CPU; leave gpu_workers at 1 "
                "and say with workers how many processes there are to be, or choose device=cuda"
            )
        return workers
    if gpu_workers > (present := torch.cuda.device_count()):
        raise ValueError(f"gpu_workers={gpu_workers}, but torch sees {present} here; ask for at most {present}")
    return gpu_workers


def launch(
    workers: int,
    device: str,
    work: Callable[..., R],
    *args: object,
    layout: ParallelConfig | None = None,
    gpu_workers: int = 1,
) -> R:
    """Run `work(world, *args)` in processes spread as `layout` says, and return what the first one returns.

    There are `workers` of them on a CPU. On GPUs there are `gpu_workers`, one on each: more than one, over NCCL, has
    not been run, and begins only where it is asked for; there one that dies may leave the others waiting, as NCCL does
    not notice at once.
    The first process is this one, so that its errors, its Ctrl-C and its progress bar are the user's. If
    another process fails, its error is raised here. Under torchrun the processes exist already, and the agent ends
    them all where one fails. Raises ValueError where the processes do not divide into the layout's ways, and for more
    GPUs than there are.
    """
    chosen, layout = choose_device(device), layout or ParallelConfig()
    if is_torchrun():
        return _join_elastic(chosen, layout, work, args)
    size = processes_here(chosen, workers, gpu_workers)
    replicas(layout, size)
    if size == 1:
        return work(_settle(0, 1, 0, 1, chosen, layout), *args)
    with tempfile.TemporaryDirectory(prefix="fathom-world-") as folder:
        crew = _Crew(size, chosen, layout, Path(folder) / "store")
        children: list[_Child] = []
        try:
            children += (_Child.start(rank, crew, work, args) for rank in range(1, size))
            for child in children:
                child.await_start()
            return _lead(children, crew, work, args)
        finally:
            for child in children:
                child.stop()


@dataclass(frozen=True)
class _Crew:
    """What all processes of a world on this machine know of it."""

    size: int
    device: torch.device
    layout: ParallelConfig
    meeting: Path


def _join_elastic(device: torch.device, layout: ParallelConfig, work: Callable[..., R], args: tuple[object, ...]) -> R:
    """Take part in torchrun's world; the agent names the process that failed first, with its error."""

    def take_part() -> R:
        rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        store = meet(ELASTIC_PATIENCE)
        dist.init_process_group(backend_of(device), store=store, rank=rank, world_size=size, timeout=ELASTIC_PATIENCE)
        local_rank, local_size = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
        return work(_settle(rank, size, local_rank, local_size, device, layout), *args)

    try:
        return cast(R, record(take_part)())
    except RuntimeError:  # a lost connection says less than what broke it: let the agent speak of that first
        time.sleep(PATIENCE)
        raise
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _lead(children: "Sequence[_Child]", crew: _Crew, work: Callable[..., R], args: tuple[object, ...]) -> R:
    """Take part as the first process, then see that the others ended well."""
    try:
        result = _take_part(0, crew, work, args)
    except _Failure as own:
        if not isinstance(own.error, RuntimeError):
            raise own.error from None
        deadline = time.monotonic() + PATIENCE  # a lost connection says less than what broke it
        others = [child.await_end(max(0.0, deadline - time.monotonic())) for child in children]
        first = min([own, *(failure for failure in others if failure)], key=lambda failure: failure.at)
        raise first.error from None
    for child in children:
        if failure := child.await_end():
            raise failure.error
    return result


@dataclass(eq=False)
class _Failure(Exception):
    """What ended a process, and when by the system's clock: the first of several caused the others."""

    at: float
    error: Exception


@dataclass(frozen=True)
class _Child:
    """Another process: it says that it has begun, and at its end what went wrong."""

    process: BaseProcess
    messages: Connection

    @staticmethod
    def start(rank: int, crew: _Crew, work: Callable[..., object], args: tuple[object, ...]) -> "_Child":
        context = mp.get_context("spawn")
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_child_main, args=(sender, rank, crew, work, args), daemon=True)
        with _interrupts_held():
            process.start()
        sender.close()  # the child's end; once the child is gone, reading here ends too
        return _Child(process, receiver)

    def await_start(self) -> None:
        """Wait until the child has imported what it needs; the others would wait in vain for one that cannot."""
        try:
            self.messages.recv_bytes()
        except EOFError:
            self.process.join(PATIENCE)  # let it finish its message
            raise RuntimeError(
                "a worker process could not start; its own message stands above, and --workers 1 does without"
            ) from None

    def await_end(self, patience: float | None = None) -> _Failure | None:
        """Wait until the child ends, or for so many seconds; what ended it, unless all went well so far."""
        if not self.messages.poll(patience):
            return None
        try:
            return pickle.loads(self.messages.recv_bytes())  # from our own child
        except EOFError:
            self.process.join()
            if self.process.exitcode in (0, INTERRUPTED):
                return None
            error = RuntimeError(
                f"a worker process ended with exit code {self.process.exitcode} and no message, as one does that the "
                "system stops for its memory; repeat the command, with a lower micro_batch_rows or --workers 1"
            )
            return _Failure(0.0, error)  # nobody else ends a process without a word

    def stop(self) -> None:
        """End the child; what it may be writing is not yet under its name."""
        self.process.terminate()
        self.process.join(PATIENCE)
        self.process.kill()  # one that heeds signals behind its step alone
        self.process.join()


@contextlib.contextmanager
def _interrupts_held() -> Generator[None]:
    """Hold Ctrl-C back, and in a process that starts meanwhile too: its imports would end in a page of traceback."""
    resource_tracker.ensure_running()  # starting it later would let Ctrl-C through again
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def _child_main(
    messages: Connection, rank: int, crew: _Crew, work: Callable[..., object], args: tuple[object, ...]
) -> None:
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        messages.send_bytes(b"begun")
        _take_part(rank, crew, work, args)
    except KeyboardInterrupt:
        os._exit(INTERRUPTED)  # the user stopped the first process as well; it speaks for both
    except _Failure as failure:
        with contextlib.suppress(OSError):
            messages.send_bytes(pickle.dumps(failure))
        os._exit(1)


def _take_part(rank: int, crew: _Crew, work: Callable[..., R], args: tuple[object, ...]) -> R:
    try:
        # a process that ends is noticed at once; one that prepares the data may keep the others waiting for long
        dist.init_process_group(
            backend_of(crew.device),
            init_method=f"file://{crew.meeting}",
            rank=rank,
            world_size=crew.size,
            timeout=timedelta(days=1),
        )
        dist.barrier()  # gloo waits on for a process that has left before all others were connected
        return work(_settle(rank, crew.size, rank, crew.size, crew.device, crew.layout), *args)
    except Exception as error:  # its time is taken before the others can notice
        raise _Failure(time.time(), error) from None
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _settle(
    rank: int, size: int, local_rank: int, local_size: int, device: torch.device, layout: ParallelConfig
) -> World:
    """Share this machine out, and keep freed memory: small tensors come and go thousands of times a second."""
    if device.type == "cuda":
        device = torch.device("cuda", local_rank % torch.cuda.device_count())
        torch.cuda.set_device(device)
    else:
        torch.set_num_threads(max(1, torch.get_num_threads() // local_size) if size > 1 else 1)
        keep_freed_memory()
    return World(rank, size, device, build_mesh(layout, size, device), layout)


def keep_freed_memory() -> None:
    """Tell glibc to reuse freed blocks instead of returning their pages.

    Every training step frees and asks for the same tensors; faulting their pages in again costs more than
    half of an RMSNorm's backward pass. Elsewhere than glibc nothing happens.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        m_trim_threshold, m_mmap_max = -1, -4
        libc.mallopt(m_mmap_max, 0)
        libc.mallopt(m_trim_threshold, 1 << 30)
