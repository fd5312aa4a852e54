"""One stage of a chain: begun again, continued or skipped, and a ledger line at its end."""

import hashlib
import json
import resource
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import torch

from fathom.config import Config
from fathom.parallel.world import World
from fathom.runs import Run, describe_commit, describe_machine, write_whole

Record = dict[str, Any]


def run_stage(
    run: Run,
    world: World,
    config: Config,
    name: str,
    inputs: dict[str, object],
    work: Callable[[], Record],
    output: Path | None = None,
    start_over: bool = True,
) -> Record:
    """Do `work` unless the ledger says that it was done with the same `inputs`; the stage's ledger line.

    `inputs` are all that the result depends on: config sections, seeds, hashes of what earlier stages made.
    A stage that was interrupted goes on where its checkpoints end. One whose inputs changed starts over, or, with
    `start_over` false, is refused with a ValueError.
    `output` must exist for a skip. Every process calls this; the first one decides and books.
    """
    key = fingerprint({"stage": name, **inputs})
    decision = _decide(run, name, key, output, start_over) if world.is_main else None
    decision = world.gather(decision)[0]
    if isinstance(decision, dict):
        return decision
    spent = sum(line.get("seconds", 0.0) for line in run.read_metrics(name))  # before an interruption
    if world.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    result = work()
    memory = sum(float(str(gib)) for gib in world.gather(peak_memory_gib(world.device)))
    record: Record = {
        "key": key,
        "seed": config.seed,
        "seconds": round(spent + time.perf_counter() - started, 6),
        "processes": world.size,
        "peak_memory_gib": round(memory, 3),
        **result,
    }
    record["dollars"] = round(record["seconds"] / 3600 * config.dollars_per_hour, 6)
    if world.is_main:
        run.append_ledger(name, **record, commit=describe_commit(), machine=describe_machine())
    world.barrier()
    return {"stage": name, **record}


def _decide(run: Run, name: str, key: str, output: Path | None, start_over: bool) -> Record | None:
    """The ledger line of an equal stage that is done, or None after making the stage's directory ready."""
    directory = run.checkpoint_dir(name)
    began = directory / "inputs"
    is_same = began.exists() and began.read_text() == key
    # the newest line alone: what an older one booked may have been replaced since
    newest = run.read_ledger(name)[-1:]
    if is_same and newest and newest[0]["key"] == key and (output is None or output.exists()):
        return newest[0]
    if not is_same:
        if began.exists() and not start_over:
            raise ValueError(
                f"{run.path} began its stage {name} with other settings; give the same ones to go on, "
                "or another directory with --out"
            )
        began.unlink(missing_ok=True)  # first, so that nobody goes on with a directory that is half deleted
        shutil.rmtree(directory, ignore_errors=True)
        run.truncate_metrics(name, after_step=-1)
        directory.mkdir(parents=True)
        write_whole(began, key)
    return None


def fingerprint(value: object) -> str:
    """Hex SHA-256 of a value made of plain types and configs."""

    def plain(item: object) -> object:
        if is_dataclass(item) and not isinstance(item, type):
            return asdict(item)
        raise TypeError(f"a fingerprint of {type(item).__name__} is not defined")

    return hashlib.sha256(json.dumps(value, sort_keys=True, default=plain).encode()).hexdigest()


def file_hash(*paths: Path) -> str:
    """Hex SHA-256 of the contents of files, in the order of their names."""
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def peak_memory_gib(device: torch.device) -> float:
    """The most memory this process has held: of its GPU in this stage, without one of the machine so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / (1 << 30)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 30 if sys.platform == "darwin" else 1 << 20)
