"""Triton kernels for given operators, run against their definition in an isolated child.

With `task.kernel_device` "interpreter" Triton's interpreter runs them on the CPU, and a right program is paid 1: speed
says nothing there. With "gpu" a right program is paid one half, and up to another half for its measured speed-up over
torch, the whole of it at `FULL_SPEED_UP`. All tensors are float32 and contiguous.
"""

import hashlib
import json
import os
import random
from dataclasses import asdict, dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fathom.config import TaskConfig
from fathom.tasks.allowed import refusal
from fathom.tasks.code import LONGEST, PATIENCE, PROGRAM, program_of
from fathom.tasks.operators import ACTIVATIONS, CORES, FACTORS, Operator
from fathom.tasks.sandbox import Finished, Limits, python_command, run_isolated
from fathom.tasks.task import GradingError, Problem, draw_from_split, render_worked, text_key, worded

FULL_SPEED_UP = 2.0
CASES = 3  # sizes that a program is tried on
LARGEST = {"M": 9, "N": 130, "K": 70}  # of those; small, as the interpreter takes its time
LARGE = {"M": 4096, "N": 4096, "K": 1024}  # where speed is measured
START_SECONDS = 10.0  # more for a child to import torch and Triton
INTERPRETER = Limits(memory_bytes=3 << 30)  # its imports alone map 0.8 GB
GPU = Limits(memory_bytes=1 << 46, processes=512, open_files=1024, file_bytes=16 << 20)  # CUDA maps what it never uses
JUDGE = Path(__file__).with_name("judge.py")


@dataclass(frozen=True)
class Kernels:
    """The task under one config."""

    config: TaskConfig

    def sample(self, rng: random.Random, held_out: bool) -> Problem:
        """Core, activation and factor at equal odds, until the split fits."""
        problem = draw_from_split(lambda: posed(draw(rng)), held_out, self.config.held_out_share)
        return worded(problem, self.config.prompt)

    def worked(self, problem: Problem, rng: random.Random) -> str:
        """A plain program, the same for every draw."""
        return render_worked(PLAN[problem.answer.count("tl.dot") > 0], problem.answer)

    def soundness(self, problem: Problem, thinking: str) -> float:
        """0: nothing here says what a sound try is."""
        return 0.0

    def grade(self, problem: Problem, answer: str) -> float:
        """What the program is paid; raises TimeoutError where it only waits, GradingError where it could not be run."""
        source = program_of(answer)
        if not 0 < len(source) <= LONGEST or "\0" in source or refusal(source):
            return 0.0
        verdict = _verdict(_judged(problem, source, self.config), self.config)
        if not verdict.get("right"):
            return 0.0
        return paid(verdict["speed_up"]) if self.config.kernel_device == "gpu" else 1.0


PLAN = {
    False: "Every program instance takes one row: a block of columns as wide as the next power of two, masked at N.",
    True: "Every program instance takes one 32 x 32 tile of the output and adds products of tiles along K, masked.",
}


def kernel(config: TaskConfig) -> Kernels:
    """The task. Raises ValueError where torch or Triton is missing."""
    _require_triton()
    return Kernels(config)


def draw(rng: random.Random) -> Operator:
    """One of all operators."""
    return Operator(rng.choice(tuple(CORES)), rng.choice(tuple(ACTIVATIONS)), rng.choice(FACTORS))


def posed(operator: Operator) -> Problem:
    """The question about an operator, its key, and a right program."""
    core = CORES[operator.core]
    sizes = ", ".join(f"{name} ({' x '.join(dims)})" for name, dims in core.inputs.items())
    question = (
        f"Write a Triton program for\n{operator.definition}"
        f"Inputs: {sizes}; out ({' x '.join(core.output)}); float32, contiguous, any sizes from 1 on. "
        "Import triton and triton.language as tl, write kernels under @triton.jit and one function "
        f"run({', '.join(core.inputs)}, out) that launches them and fills out. Bounds of loops are tl.constexpr."
    )
    return Problem(question, text_key(operator.name), answer=operator.solution, truth=json.dumps(asdict(operator)))


def paid(speed_up: float) -> float:
    """From one half on, at torch's speed three quarters, 1 at `FULL_SPEED_UP` and beyond."""
    return 0.5 + 0.5 * min(max(speed_up, 0.0), FULL_SPEED_UP) / FULL_SPEED_UP


def _judged(problem: Problem, source: str, config: TaskConfig) -> Finished:
    operator, on_gpu = Operator(**json.loads(problem.truth)), config.kernel_device == "gpu"
    core = CORES[operator.core]
    # the same verdict for the same answer, from numbers that the program cannot foresee
    seed = int(hashlib.sha256(f"{problem.key} {source}".encode(errors="replace")).hexdigest()[:12], 16)
    rng = random.Random(seed)
    asked = {
        "definition": operator.definition,
        "inputs": dict(core.inputs),
        "output": core.output,
        "sizes": [{dim: rng.randint(2, most) for dim, most in LARGEST.items()} for _ in range(CASES)],
        "large": LARGE,
        "seed": seed,
        "device": "cuda" if on_gpu else "cpu",
    }
    base, seconds = GPU if on_gpu else INTERPRETER, config.check_seconds + START_SECONDS
    limits = Limits(
        PATIENCE * seconds, max(1, int(seconds)), base.memory_bytes, base.file_bytes, base.processes, base.open_files,
        devices=graphics() if on_gpu else (),
    )  # fmt: skip
    words = ["env", "OMP_NUM_THREADS=1", "HOME={dir}", "TMPDIR={dir}", "TRITON_HOME={dir}"]
    # without its loader's path a driver that a container mounts is not found
    words += [f"LD_LIBRARY_PATH={os.environ.get('LD_LIBRARY_PATH', '')}"] if on_gpu else ["TRITON_INTERPRET=1"]
    files = {"judge.py": JUDGE.read_text(encoding="utf-8"), PROGRAM: source}
    command = [*words, *python_command("judge.py", packages=True)]
    return run_isolated(command, files, limits, config.isolation, json.dumps(asked).encode())


def graphics() -> tuple[str, ...]:
    """Names under /dev of this machine's NVIDIA devices."""
    return tuple(sorted(path.name for path in Path("/dev").glob("nvidia*") if path.is_char_device()))


def _verdict(ended: Finished, config: TaskConfig) -> dict[str, Any]:
    """What the judge said. A program that crashes, or uses up its CPU time, is wrong; one that waits is undecided."""
    begun, _, said = ended.output.partition(b"\n")
    if begun != b"begun":
        lines = ended.errors.decode(errors="replace").strip().splitlines() or ["it said nothing"]
        raise GradingError(f"Triton did not start within the child ({ended.outcome}): {lines[-1][-300:]}")
    if ended.outcome == "timeout" and not ended.cpu_spent:
        raise TimeoutError(f"the program did not end within {PATIENCE * (config.check_seconds + START_SECONDS):g} s")
    return json.loads(said) if ended.outcome == "done" and said else {}


@cache
def _require_triton() -> None:
    for name in ("torch", "triton"):
        if find_spec(name) is None:
            raise ValueError(f"task.kind=kernels needs the package {name}, which is not installed; pip install {name}")
