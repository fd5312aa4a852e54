"""The C files of this package, compiled where they run: once for each kind of processor, kept in the user's cache.

They are twins of what torch computes, for where its calls cost more than their work. Without a C compiler there are
none, and torch computes.
"""

import ctypes
import logging
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from functools import cache
from hashlib import sha256
from pathlib import Path

import torch

log = logging.getLogger(__name__)

SOURCES = Path(__file__).parent / "c"
# What torch itself goes by, so that a cache that several machines share never gives one a stranger's instructions.
LEVELS = {"AVX512": "-march=x86-64-v4", "AVX2": "-march=x86-64-v3"}
FLAGS = ("-O3", "-std=c11", "-shared", "-fPIC", "-Wno-psabi")


@cache
def compiled(name: str) -> ctypes.CDLL | None:
    """The library of `NAME.c`; None, announced once, where it cannot be made."""
    command = _compiler()
    if command is None:
        log.info("no C compiler: few rows are decoded by torch's operations, which is slower; install gcc or clang")
        return None
    try:
        return ctypes.CDLL(str(_library(name, command)))
    except (OSError, RuntimeError) as error:
        log.warning("few rows are decoded by torch's operations, which is slower: %s", error)
        return None


def _compiler() -> list[str] | None:
    """The user's C compiler with his arguments: $CC, else cc."""
    command = shlex.split(os.environ.get("CC") or "cc")
    return command if shutil.which(command[0]) else None


def _library(name: str, command: list[str]) -> Path:
    """The file of a library, made unless the same sources were compiled so before."""
    level = LEVELS.get(torch.backends.cpu.get_cpu_capability())
    command = [*command, *FLAGS, *([level] if level else [])]
    made_of = [" ".join((*command, platform.machine())).encode()]
    made_of += [file.read_bytes() for file in sorted(SOURCES.iterdir()) if file.suffix in (".c", ".h")]
    folder = _cache_folder()
    path = folder / f"{name}-{sha256(b'|'.join(made_of)).hexdigest()[:20]}.so"
    if not path.exists():
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as work:
            _compile(command, SOURCES / f"{name}.c", Path(work) / path.name)
            (Path(work) / path.name).replace(path)  # at once: others may be compiling the same
    return path


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fathom" / "native"


def _compile(command: list[str], source: Path, target: Path) -> None:
    """Raise RuntimeError with what the compiler said where it fails."""
    said = ""
    for threads in (["-fopenmp"], []):  # some compilers come without it; torch's own threads then stay idle
        done = subprocess.run(
            [*command, *threads, str(source), "-o", str(target), "-lm"], capture_output=True, text=True, check=False
        )
        if done.returncode == 0:
            return
        said = done.stderr
    raise RuntimeError(f"{command[0]} could not compile {source.name}: {said.strip()[:500]}")
