"""Problems with checkable answers: what reinforcement learning trains on and evaluation asks."""

from fathom.config import TaskConfig
from fathom.tasks.arithmetic import Arithmetic
from fathom.tasks.code import code
from fathom.tasks.countdown import Countdown
from fathom.tasks.custom import custom
from fathom.tasks.equations import equation
from fathom.tasks.grid import grid
from fathom.tasks.gym import gym
from fathom.tasks.kernels import kernel
from fathom.tasks.logic import logic
from fathom.tasks.mathematics import mathematics
from fathom.tasks.multiplication import multiplication
from fathom.tasks.sandbox import require_isolation
from fathom.tasks.sorting import sorting
from fathom.tasks.strings import strings
from fathom.tasks.task import GradingError, Problem, Task, distinct_problems

__all__ = ["Arithmetic", "Countdown", "GradingError", "Problem", "Task", "build", "distinct_problems"]

KINDS = {
    "countdown": Countdown,
    "arithmetic": Arithmetic,
    "multiplication": multiplication,
    "equation": equation,
    "sorting": sorting,
    "strings": strings,
    "logic": logic,
    "grid": grid,
    "jsonl": mathematics,
    "code": code,
    "custom": custom,
    "gym": gym,
    "kernels": kernel,
}
FOREIGN = ("code", "custom", "gym", "kernels")  # their answers or checks run in a child


def build(config: TaskConfig) -> Task:
    """The task that `config.kind` names.

    Raises RuntimeError for a task that runs foreign code where nothing cuts that off from network and files.
    """
    if config.kind in FOREIGN or config.math_verify:
        require_isolation(config.isolation)
    return KINDS[config.kind](config)
