"""A task of three functions: one that draws problems, one that works them out, one that accepts answers."""

import random
from collections.abc import Callable
from dataclasses import dataclass

from fathom.config import TaskConfig
from fathom.tasks.task import Problem, draw_from_split, render_worked, worded


@dataclass(frozen=True)
class Drawn:
    """The task under one config; `draw` may fail with None, and thinking holds no tries that could be sound."""

    config: TaskConfig
    draw: Callable[[random.Random, TaskConfig], Problem | None]
    think: Callable[[Problem], str]
    accepts: Callable[[Problem, str], bool]

    def sample(self, rng: random.Random, held_out: bool) -> Problem:
        """Draw until the split fits."""
        problem = draw_from_split(lambda: self.draw(rng, self.config), held_out, self.config.held_out_share)
        return worded(problem, self.config.prompt)

    def worked(self, problem: Problem, rng: random.Random) -> str:
        """The steps, then the answer; one way only, so `rng` is not drawn from."""
        return render_worked(self.think(problem), problem.answer)

    def soundness(self, problem: Problem, thinking: str) -> float:
        """0: nothing here says what a sound try is."""
        return 0.0

    def grade(self, problem: Problem, answer: str) -> bool:
        return self.accepts(problem, answer)


def is_exactly(problem: Problem, answer: str) -> bool:
    """Whether an answer is the expected text, spaces around it apart."""
    return answer.strip(" ") == problem.answer


def is_listed(problem: Problem, answer: str) -> bool:
    """The same with any spaces behind the commas of a list."""
    return ",".join(entry.strip(" ") for entry in answer.split(",")) == problem.answer
