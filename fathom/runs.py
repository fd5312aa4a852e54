"""A run directory: its config, metrics, samples and ledger, and the machine and commit behind them.

    config.json     every knob of the run          tokenizer.json   shards/
    metrics.jsonl   one line per step of a stage   STAGE/           the checkpoints of a stage
    samples.jsonl   answers kept as examples       report.html
    ledger.jsonl    one line per finished stage
    pipeline.jsonl  steps of a pipeline as measured, one line a step

Records go to the end of a file, one line at a time, so a killed process can tear the last line and no other; readers
pass over a torn line and the next record replaces it. Whole files appear at once or not at all.
"""

import errno
import fcntl
import json
import math
import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from fathom.config import Config
from fathom.config.load import from_json, to_json

Record = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """The directory of one run. Nothing is created before the first write."""

    path: Path

    def __init__(self, path: Path | str) -> None:
        object.__setattr__(self, "path", Path(path))
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"{self.path} is a file; a run is a directory, name a new or an existing one")

    @property
    def config(self) -> Config:
        """Every knob of the run. Raises ValueError where the directory holds none."""
        file = self.path / "config.json"
        if not file.exists():
            raise ValueError(f"{self.path} holds no config.json; name the directory of a run that was started")
        return from_json(file.read_text(encoding="utf-8"))

    def write_config(self, config: Config) -> None:
        """Keep `config` as the run's own, in place of an earlier one."""
        write_whole(self.path / "config.json", to_json(config))

    @property
    def tokenizer_path(self) -> Path:
        """The tokenizer's file."""
        return self.path / "tokenizer.json"

    @property
    def shards_dir(self) -> Path:
        """The directory of tokenized text."""
        return self.path / "shards"

    @property
    def report_path(self) -> Path:
        """The page that shows the run."""
        return self.path / "report.html"

    def checkpoint_dir(self, stage: str) -> Path:
        """The directory above the checkpoints of `stage`; whoever saves one creates it."""
        return self.path / stage

    def append_metrics(self, stage: str, step: int, **values: Any) -> None:
        """Add the line of one step; a number that is not finite is kept as null."""
        append_record(self.path / "metrics.jsonl", {"stage": stage, "step": step, **values})

    def read_metrics(self, stage: str | None = None) -> list[Record]:
        """The lines of `stage`, or of all stages, in the order written."""
        return _of_stage(self.path / "metrics.jsonl", stage)

    def truncate_metrics(self, stage: str, after_step: int) -> None:
        """Forget what `stage` did beyond `after_step`, for a resume from the checkpoint of that step.

        Other stages keep their lines. A file that holds nothing to drop is left alone.
        """
        _keep(self.path / "metrics.jsonl", lambda record: record["stage"] != stage or record["step"] <= after_step)

    def append_sample(
        self, stage: str, *, question: str, thinking: str, answer: str | None, correct: bool, reply: str, **more: Any
    ) -> None:
        """Keep one answer as an example: `reply` is the model's text, `thinking` and `answer` its parts."""
        sample = {"question": question, "thinking": thinking, "answer": answer, "correct": correct, "reply": reply}
        append_record(self.path / "samples.jsonl", {"stage": stage, **sample, **more})

    def read_samples(self, stage: str | None = None) -> list[Record]:
        """The examples of `stage`, or of all stages, in the order written."""
        return _of_stage(self.path / "samples.jsonl", stage)

    def forget_samples(self, stage: str, after_step: int = -1) -> None:
        """Drop the examples of `stage` beyond `after_step`, from which it is about to give them anew."""
        _keep(self.path / "samples.jsonl", lambda r: r["stage"] != stage or r.get("step", 0) <= after_step)

    def append_pipeline(self, stage: str, step: int, record: Mapping[str, Any]) -> None:
        """Keep one step of a pipeline as its processes measured it."""
        append_record(self.path / "pipeline.jsonl", {"stage": stage, "step": step, **record})

    def read_pipeline(self, stage: str | None = None) -> list[Record]:
        """The measured steps of `stage`, or of all stages, in the order written."""
        return _of_stage(self.path / "pipeline.jsonl", stage)

    def append_ledger(self, stage: str, **values: Any) -> None:
        """Book a finished stage: what went in, what came out, what it cost."""
        append_record(self.path / "ledger.jsonl", {"stage": stage, **values})

    def read_ledger(self, stage: str | None = None) -> list[Record]:
        """The ledger lines of `stage`, or of all stages, in the order written."""
        return _of_stage(self.path / "ledger.jsonl", stage)

    @contextmanager
    def lock(self) -> Generator[None]:
        """Keep other writers out while the block runs; readers need no lock.

        The kernel holds the lock, so it ends with the process, however that ends. Raises RuntimeError naming the
        process that has it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with open(self.path / ".lock", "a+", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                holder = file.read().strip() or "unknown"
                raise RuntimeError(
                    f"{self.path} is being written by process {holder}; wait until it ends or name another directory"
                ) from None
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            yield


def write_whole(path: Path, content: str | bytes) -> None:
    """Put `content` at `path`, whole or not at all, even if the machine stops on the way.

    Raises OSError when the disk is full; what was there before is then still there.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    with _full_disk_explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(draft, "wb") as file:
                file.write(content.encode() if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)


def append_record(path: Path, record: Mapping[str, Any]) -> None:
    """Add one line of JSON to a file, whole or not at all; a torn last line goes, and infinities become null."""
    line = json.dumps(finite(record), ensure_ascii=False, allow_nan=False).encode() + b"\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    with _full_disk_explained(path), open(path, "ab+", buffering=0) as file:
        end = _drop_torn_line(file)
        try:
            if file.write(line) < len(line):
                raise OSError(errno.ENOSPC, "short write")
        except OSError:
            with suppress(OSError):
                file.truncate(end)
            raise


def finite(value: Any) -> Any:
    """`value` with None for every number that JSON cannot hold."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in cast(Mapping[str, Any], value).items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in cast(Sequence[Any], value)]
    return value


def describe_machine() -> dict[str, Any]:
    """The machine this process runs on, as a ledger line keeps it."""
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpus": _answer_of("nvidia-smi", "--query-gpu=name", "--format=csv,noheader").splitlines(),
        "python": platform.python_version(),
        "platform": platform.platform(terse=True),
    }


def describe_commit() -> str | None:
    """The git commit of Fathom's source, with `-dirty` behind it when files differ; None outside a checkout."""
    source = Path(__file__).parent
    git = ("git", "-C", str(source))
    # An installed copy may lie inside somebody's own repository, whose commit says nothing about Fathom.
    if not _answer_of(*git, "ls-files", Path(__file__).name):
        return None
    commit = _answer_of(*git, "rev-parse", "HEAD")
    changed = _answer_of(*git, "status", "--porcelain", "--untracked-files=no")
    return (f"{commit}-dirty" if changed else commit) or None


def _drop_torn_line(file: BinaryIO) -> int:
    """Cut what a killed process left behind the last whole line; returns the file's size."""
    size = file.seek(0, os.SEEK_END)
    if size == 0:
        return 0
    file.seek(size - 1)
    if file.read(1) == b"\n":
        return size
    file.seek(0)
    size = file.read().rfind(b"\n") + 1
    file.truncate(size)
    return size


def _keep(path: Path, wanted: Callable[[Record], bool]) -> None:
    """Rewrite a file of records with the wanted ones; one that would not change is left alone."""
    if not path.exists():
        return
    content = path.read_bytes()
    kept = b"".join(line + b"\n" for line, record in _parse(path, content) if wanted(record))
    if kept != content:
        write_whole(path, kept)


def _of_stage(path: Path, stage: str | None) -> list[Record]:
    if not path.exists():
        return []
    return [record for _, record in _parse(path, path.read_bytes()) if stage is None or record["stage"] == stage]


def _parse(path: Path, content: bytes) -> Iterator[tuple[bytes, Record]]:
    """Each whole line with its record; a torn last line is passed over."""
    whole, _, _ = content.rpartition(b"\n")
    for number, line in enumerate(whole.splitlines(), start=1):
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if not isinstance(record, dict) or "stage" not in record:
            raise ValueError(f"{path} line {number} is no record of a stage; delete that line and try again")
        yield line, cast(Record, record)


@contextmanager
def _full_disk_explained(path: Path) -> Generator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise OSError(
            error.errno, f"the disk is full, {path} was not written; free some space there and resume the run"
        ) from error


def _cpu_model() -> str:
    with suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
        for line in file:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _answer_of(*command: str) -> str:
    """What a program prints, or nothing where it is missing, fails or does not answer."""
    if shutil.which(command[0]) is None:
        return ""
    with suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    return ""
