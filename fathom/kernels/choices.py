"""Where torch was measured to be faster than a kernel of ours: a table per GPU in the user's cache directory.

`fathom bench kernels` writes it; nothing else does, and without it our kernels are taken. It holds for one GPU
model and one release of torch and Triton.
"""

import functools
import json
import logging
import os
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from torch import Tensor

log = logging.getLogger(__name__)

Place = tuple[str, int, int]  # name of the operation, and `bucket` of its first tensor


def path() -> Path:
    """Where the table is: $XDG_CACHE_HOME/fathom/kernels.json, or below ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fathom" / "kernels.json"


def bucket(x: Tensor) -> tuple[int, int]:
    """Rows, rounded up to a power of two, and width: sizes of one bucket share a choice."""
    width = x.shape[-1] if x.ndim else 1
    rows = x.numel() // max(width, 1)
    return 1 << max(rows - 1, 0).bit_length(), width


def this_gpu() -> str:
    """What a table holds for."""
    try:
        triton = version("triton")
    except PackageNotFoundError:
        triton = "none"
    return f"{torch.cuda.get_device_name()}, torch {torch.__version__}, triton {triton}"


@functools.cache
def torch_wins() -> frozenset[Place]:
    """The places of this GPU's table at which torch is faster; read once a process."""
    return read(path(), this_gpu())


# a table read is settled: what `torch.compile` traces need not read it again
setattr(torch_wins, "_dynamo_marked_constant", True)  # noqa: B010


def read(file: Path, gpu: str) -> frozenset[Place]:
    """The places that `file` gives to torch on `gpu`; none where there is no such file.

    A file that cannot be read as a table is named in the log and passed over.
    """
    try:
        table: dict[str, str] = json.loads(file.read_text(encoding="utf-8")).get(gpu, {})
        return frozenset(_place(place) for place, side in table.items() if side == "torch")
    except FileNotFoundError:
        return frozenset()
    except (OSError, ValueError, AttributeError) as error:
        log.warning(
            "%s is no table of kernels (%s); ours are taken. Delete it, or run fathom bench kernels", file, error
        )
        return frozenset()


def write(file: Path, gpu: str, winners: dict[Place, str]) -> None:
    """Put the winners, "torch" or "triton", in the place of what `file` said of `gpu`; other GPUs' entries stay."""
    tables: dict[str, dict[str, str]] = {}
    if file.exists():
        try:
            tables = json.loads(file.read_text(encoding="utf-8"))
        except ValueError:
            log.warning("%s was no table of kernels and is written anew", file)
    tables[gpu] = {f"{name} {rows}x{width}": side for (name, rows, width), side in winners.items()}
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")  # a reader never meets half a table
    partial.write_text(json.dumps(tables, indent=1) + "\n", encoding="utf-8")
    partial.replace(file)


def _place(text: str) -> Place:
    name, _, size = text.rpartition(" ")
    rows, width = size.split("x")
    return name, int(rows), int(width)
