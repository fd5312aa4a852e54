'''A task of your own: one Python file with a prompt and a check.

    """Sums of two numbers."""

    def prompt(rng):
        a, b = rng.randint(1, 99), rng.randint(1, 99)
        return f"What is {a}+{b}?", a + b

    def check(answer, truth):
        return answer == str(truth)

`prompt` gets a `random.Random` and returns a question and what the check must know, as JSON can hold it. `check` gets
the text between the answer tags and returns True, False, or a number from 0 to 1. A third function, if there is one,
`worked(truth, rng)`, returns a reply for the cold start, `THINKING</think><answer>ANSWER</answer>`. Prompts are drawn
in this process; every check runs in a child of its own. `fathom reward lint FILE` attacks the check before models do.
'''

import importlib.util
import json
import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from fathom.config import TaskConfig
from fathom.tasks.child import ask
from fathom.tasks.task import GradingError, Problem, draw_from_split, text_key, worded

_MODULE = """
import importlib.util, os
spec = importlib.util.spec_from_file_location("task", os.path.join(os.path.dirname(__file__), "task.py"))
task = importlib.util.module_from_spec(spec)
spec.loader.exec_module(task)

def answer(asked):
    found = task.check(asked["answer"], asked["truth"])
    return found if isinstance(found, (bool, int, float)) else {"type": type(found).__name__}
"""


@dataclass(frozen=True)
class Custom:
    """The task of one file under one config."""

    config: TaskConfig
    source: str
    prompt: Callable[[random.Random], tuple[str, object]]
    solve: Callable[[object, random.Random], str] | None

    def sample(self, rng: random.Random, held_out: bool) -> Problem:
        """Draw with the file's own `prompt` until the split fits; the question alone is the key."""
        problem = draw_from_split(lambda: self._draw(rng), held_out, self.config.held_out_share)
        return worded(problem, self.config.prompt)

    def worked(self, problem: Problem, rng: random.Random) -> str:
        if self.solve is None:
            raise ValueError(
                f"{self.config.file} has no function worked, so there are no demonstrations; train without a cold "
                "start (--no_cold_start), or add worked(truth, rng)"
            )
        return self.solve(json.loads(problem.truth), rng)

    def soundness(self, problem: Problem, thinking: str) -> float:
        """0: nothing here says what a sound try is."""
        return 0.0

    def grade(self, problem: Problem, answer: str) -> float:
        """What the check pays. Raises TimeoutError, and GradingError where it fails or pays what is no share."""
        asked = {"answer": answer, "truth": json.loads(problem.truth)}
        paid = ask(_MODULE, asked, self.config, {"task.py": self.source}, packages=True, memory_bytes=2 << 30)
        if not isinstance(paid, bool | int | float) or not math.isfinite(paid) or not 0 <= paid <= 1:
            given = f"a {paid['type']}" if isinstance(paid, dict) else repr(paid)
            raise GradingError(f"check of {self.config.file} returned {given}; return True, False or a number 0 to 1")
        return float(paid)

    def _draw(self, rng: random.Random) -> Problem:
        drawn: Any = self.prompt(rng)
        if not isinstance(drawn, tuple) or len(cast(tuple[Any, ...], drawn)) != 2 or not isinstance(drawn[0], str):
            raise ValueError(
                f"prompt of {self.config.file} returned {drawn!r}; return a pair, the question and what check must know"
            )
        question, truth = cast(tuple[str, object], drawn)
        try:
            return Problem(question, text_key(question), truth=json.dumps(truth))
        except (TypeError, ValueError) as error:
            raise ValueError(f"prompt of {self.config.file} returned a truth that JSON cannot hold: {error}") from None


def custom(config: TaskConfig) -> Custom:
    """The task of `config.file`. Raises ValueError where the file is missing, fails, or lacks prompt or check."""
    path = Path(config.file)
    module = _load(path)
    for name in ("prompt", "check"):
        if not callable(getattr(module, name, None)):
            raise ValueError(
                f"{path} has no function {name}; a task is a file with prompt(rng) and check(answer, truth)"
            )
    return Custom(config, path.read_text(encoding="utf-8"), module.prompt, getattr(module, "worked", None))


def _load(path: Path) -> ModuleType:
    if not path.is_file():
        raise ValueError(f"there is no file {path}; name a Python file with prompt(rng) and check(answer, truth)")
    spec = importlib.util.spec_from_file_location("fathom_custom_task", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path} is no Python file; a task is a .py file with prompt(rng) and check(answer, truth)")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever a user's file raises is that file's trouble, told in one sentence
        raise ValueError(f"{path} cannot be loaded: {type(error).__name__}: {error}") from error
    return module
