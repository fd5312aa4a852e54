"""Problems that are given, not drawn: a list split by hash, of which each is as likely as any other of its side."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from fathom.config import TaskConfig
from fathom.tasks.task import Problem, is_held_out, render_worked, worded


@dataclass(frozen=True)
class Given:
    """The task of a file; a problem that stands in it twice counts twice, always on one side."""

    config: TaskConfig
    problems: Sequence[Problem]
    accepts: Callable[[Problem, str], float]

    @cached_property
    def sides(self) -> dict[bool, list[Problem]]:
        """The problems kept for evaluation (True) and those to train on."""
        kept = [is_held_out(problem.key, self.config.held_out_share) for problem in self.problems]
        return {side: [p for p, own in zip(self.problems, kept, strict=True) if own == side] for side in (False, True)}

    def sample(self, rng: random.Random, held_out: bool) -> Problem:
        """One of the split's problems."""
        side = self.sides[held_out]
        if not side:
            name = "held-out" if held_out else "training"
            raise ValueError(
                f"none of the {len(self.problems)} problems of {self.config.file} is a {name} one with "
                f"task.held_out_share={self.config.held_out_share}; change that share or give more problems"
            )
        return worded(rng.choice(side), self.config.prompt)

    def worked(self, problem: Problem, rng: random.Random) -> str:
        """The file's own reasoning, then the answer; raises ValueError for a problem that came without."""
        if not problem.reasoning:
            raise ValueError(
                f"{self.config.file} has no worked solution of {problem.question[:60]!r}; train without a cold start "
                "(--no_cold_start), or add a field solution to every line"
            )
        return render_worked(problem.reasoning, problem.answer)

    def soundness(self, problem: Problem, thinking: str) -> float:
        """0: nothing here says what a sound try is."""
        return 0.0

    def grade(self, problem: Problem, answer: str) -> float:
        return self.accepts(problem, answer)
