"""Problems with checkable answers: what reinforcement learning trains on and evaluation asks."""

from fathom.config import TaskConfig
from fathom.tasks.arithmetic import Arithmetic
from fathom.tasks.countdown import Countdown
from fathom.tasks.task import GradingError, Problem, Task, distinct_problems

__all__ = ["Arithmetic", "Countdown", "GradingError", "Problem", "Task", "build", "distinct_problems"]


def build(config: TaskConfig) -> Task:
    """The task that `config.kind` names; raises ValueError for a name that is none."""
    match config.kind:
        case "countdown":
            return Countdown(config)
        case "arithmetic":
            return Arithmetic(config)
        case _:
            raise ValueError(f"task.kind={config.kind!r} is unknown; choose countdown or arithmetic")
