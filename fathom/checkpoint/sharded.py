"""Checkpoints of a state that no process holds alone: every process writes its parts, while training goes on.

A checkpoint is a directory of safetensors files, one a process, whose headers say where each part belongs in its
tensor, with a manifest. It is written by torch.distributed.checkpoint and can be read in any other layout: nothing in
it is a pickle. It appears under its name when it is complete, so that a half-written one is never found.
"""

import os
import shutil
import warnings
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save

from fathom.checkpoint.files import MANIFEST
from fathom.checkpoint.manifest import FileRecord, Manifest, record_file
from fathom.checkpoint.state import checkpoint_path, flush, prune
from fathom.checkpoint.tensors import Form
from fathom.parallel.mesh import ALONE, Axis

ALONE_WARNING = "torch.distributed is disabled"  # one process is a world, too


class Saver:
    """Writes the checkpoints of a world in the background, one at a time.

    Its processes talk in a group of their own: a message of the checkpoint never meets one of the training.
    """

    def __init__(self, everyone: Axis = ALONE) -> None:
        self._everyone = everyone
        self._talk: Axis | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None

    def save(
        self,
        stage_dir: Path,
        step: int,
        tensors: dict[str, Tensor],
        values: dict[str, Any],
        keep: int,
        describe: Callable[[Path], None] = lambda directory: None,
    ) -> None:
        """Copy `tensors`, this process's parts, and return; the files follow. Called by all processes.

        A tensor that several processes name is written once. `values` go into the manifest as the first process has
        them, `describe` lets it add files. Waits for the save before; raises its error, OSError, or that of beginning.
        """
        self.wait()
        talk = self._group()
        partial = stage_dir / f"partial-{step:06d}"
        _agree(talk, lambda: _begin(partial) if talk.rank == 0 else None)
        warnings.filterwarnings("ignore", ALONE_WARNING)  # given in another thread
        writer = HuggingFaceStorageWriter(str(partial), save_distributed=True)
        saving = async_save(tensors, storage_writer=writer, process_group=talk.group, no_dist=talk.size == 1)
        assert isinstance(saving, Future)

        def finish() -> None:
            try:
                files = _await_files(saving, partial, talk)
                final = checkpoint_path(stage_dir, step)
                _agree(talk, lambda: _commit(partial, final, values, files, describe) if talk.rank == 0 else None)
                if talk.rank == 0:
                    prune(stage_dir, keep)
            except OSError:
                if talk.rank == 0:
                    shutil.rmtree(partial, ignore_errors=True)
                raise

        self._pending = self._thread.submit(finish)

    def check(self) -> None:
        """Raise what ended a save since; costs nothing while one is under way."""
        if self._pending is not None and self._pending.done():
            self.wait()

    def wait(self) -> None:
        """Wait until the save under way is on the disk, and raise what ended it."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def _group(self) -> Axis:
        if self._talk is None:
            group = dist.new_group(backend="gloo") if self._everyone.size > 1 else None
            assert not isinstance(group, int)  # which is a process outside the group
            self._talk = Axis(self._everyone.rank, self._everyone.size, group)
        return self._talk


@dataclass(frozen=True)
class Opened:
    """A checkpoint whose files are those that were written."""

    path: Path
    values: dict[str, Any]  # as `Saver.save` took them
    forms: dict[str, Form]  # dtype and whole shape of every tensor
    everyone: Axis

    @staticmethod
    def at(path: Path, everyone: Axis = ALONE) -> "Opened":
        """Called by all processes. Raises ValueError on all of them, naming the files, where some are damaged."""
        manifest = Manifest.read(path)
        manifest.verify(path, everyone)
        found = HuggingFaceStorageReader(str(path)).read_metadata().state_dict_metadata
        tensors = {name: kept for name, kept in found.items() if isinstance(kept, TensorStorageMetadata)}
        forms = {name: (kept.properties.dtype, tuple(kept.size)) for name, kept in tensors.items()}
        return Opened(path, manifest.values, forms, everyone)

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Fill `tensors`, whatever parts of them this process holds. Called by all processes, each with its own.

        Raises ValueError for a name or a shape that the checkpoint has not.
        """
        reader = HuggingFaceStorageReader(str(self.path))
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", ALONE_WARNING)
                load(dict(tensors), storage_reader=reader, no_dist=self.everyone.size == 1)
        except CheckpointException as error:
            raise ValueError(f"{self.path} does not hold what this training needs: {_first(error)}") from error


def is_sharded(path: Path) -> bool:
    """Whether a checkpoint was written in parts."""
    return (path / MANIFEST).exists()


def _begin(partial: Path) -> None:
    """An empty directory: files that another layout left would be read as parts."""
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)


def _await_files(saving: "Future[Any]", partial: Path, talk: Axis) -> dict[str, FileRecord]:
    """All processes' files, each hashed by the process that wrote it."""
    try:
        saving.result()
    except CheckpointException as error:
        cause = _first(error)
        number = cause.errno if isinstance(cause, OSError) else None
        raise OSError(number, f"a checkpoint could not be written ({cause})", str(partial)) from error
    written = partial.glob(f"shard-{talk.rank + 1:05d}-*")
    parts = _agree(talk, lambda: {path.name: record_file(path) for path in written})
    return {name: record for part in parts for name, record in part.items()}


def _commit(
    partial: Path,
    final: Path,
    values: dict[str, Any],
    files: dict[str, FileRecord],
    describe: Callable[[Path], None],
) -> None:
    """Add what describes the files and give the directory its name."""
    describe(partial)
    described = {path.name: record_file(path) for path in partial.iterdir() if path.name not in files}
    for name in described:
        flush(partial / name)
    Manifest.of(values, files | described).write(partial)
    flush(partial)
    shutil.rmtree(final, ignore_errors=True)
    os.replace(partial, final)
    flush(final.parent)


def _agree(talk: Axis, work: Callable[[], Any]) -> list[Any]:
    """What `work` gave on every process; OSError on all of them where it failed on one."""
    failure: OSError | None = None
    result: object = None
    try:
        result = work()
    except OSError as error:
        failure = error
    outcomes: list[Any] = talk.gather((result, failure))
    for _, failed in outcomes:
        if failed is not None:
            raise failed
    return [result for result, _ in outcomes]


def _first(error: CheckpointException) -> BaseException:
    """What the first process that failed had to say."""
    cause, _ = error.failures[min(error.failures)]
    return cause
