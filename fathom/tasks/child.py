"""Python of ours that runs in an isolated child: what it is asked, what it says, and what becomes of its failures."""

import json
from collections.abc import Mapping
from typing import Any

from fathom.config import TaskConfig
from fathom.tasks.sandbox import Finished, Limits, python_command, run_isolated
from fathom.tasks.task import GradingError

SAID = 300  # characters of a child's last words that an error repeats
SCRIPT = "ask.py"

# The answer goes to a copy of standard output that a checker's own prints do not reach.
_DRIVER = """
import json, os, sys
said = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
asked = json.load(sys.stdin)
sys.stdin = open(os.devnull)
import foreign
said.write(json.dumps(foreign.answer(asked)))
said.flush()
os._exit(0)
"""


def ask(
    module: str,
    asked: object,
    config: TaskConfig,
    files: Mapping[str, str] | None = None,
    packages: bool = False,
    memory_bytes: int = 1 << 30,
) -> Any:
    """What `answer(asked)` of the source `module` returns in an isolated child, both as JSON.

    Raises TimeoutError where it takes longer than `config.check_seconds`, GradingError where it fails otherwise.
    """
    seconds = config.check_seconds
    limits = Limits(wall_seconds=seconds, cpu_seconds=max(1, int(seconds)), memory_bytes=memory_bytes)
    sources = {SCRIPT: _INSERT + _DRIVER, "foreign.py": module, **(files or {})}
    command = python_command(SCRIPT, packages)
    return verdict(run_isolated(command, sources, limits, config.isolation, json.dumps(asked).encode()), seconds)


# an isolated Python does not look beside its script
_INSERT = "import os, sys\nsys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))\n"


def verdict(finished: Finished, seconds: float) -> Any:
    """The JSON that a child wrote. Raises TimeoutError or GradingError where there is none."""
    if finished.outcome == "timeout":
        raise TimeoutError(f"the check took more than task.check_seconds={seconds:g}")
    if finished.outcome == "crash":
        lines = finished.errors.decode(errors="replace").strip().splitlines() or ["it said nothing"]
        last = "".join(sign if sign.isprintable() else "?" for sign in lines[-1][-SAID:])
        raise GradingError(f"the check ended with code {finished.code}: {last}")
    try:
        return json.loads(finished.output)
    except (ValueError, RecursionError):
        raise GradingError("the check ended without an answer") from None
