"""Equality of answers by math-verify, in a child process: hostile LaTeX makes it slow, or hang."""

from functools import cache
from importlib.util import find_spec

from fathom.config import TaskConfig
from fathom.tasks.child import ask

LONGEST = 500  # characters of an answer that is still looked at
MEMORY = 2 << 30

# the gold answer goes first: an inequality equals an interval one way round only
_MODULE = """
from math_verify import parse, verify

def answer(asked):
    gold, given = (parse("\\\\boxed{" + text + "}", parsing_timeout=None) for text in asked)
    return bool(gold and given and verify(gold, given, timeout_seconds=None))
"""


def verify(gold: str, given: str, config: TaskConfig) -> float:
    """1 where math-verify finds the two equal. Raises TimeoutError or GradingError where it comes to no verdict."""
    require_math_verify()
    if not 0 < len(given) <= LONGEST:
        return 0.0
    return float(ask(_MODULE, [gold, given], config, packages=True, memory_bytes=MEMORY) is True)


@cache
def require_math_verify() -> None:
    """Raise ValueError where the package is missing."""
    if find_spec("math_verify") is None:
        raise ValueError("task.math_verify needs the package math-verify; pip install 'fathomlm[rl]'")
