"""Reinforcement over all scenarios: what a rule checks beside what a reward model judges (R1 2.3.4)."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from fathom.rl.reward_model import RewardModel, judged
from fathom.tasks import Problem, Task
from fathom.tasks.task import draw_from_split, render_worked, text_key
from fathom.text.general import Preference
from fathom.text.tokenizer import Tokenizer

GENERAL = "general"  # `Problem.truth` of a question that no rule checks


class GeneralTask:
    """General questions; an answer earns the reward model's odds of beating the answer people preferred.

    That is sigmoid(score - score of the preferred answer), between 0 and 1: a score alone has no zero.
    """

    def __init__(
        self, pairs: Sequence[Preference], model: RewardModel, tokenizer: Tokenizer, held_out_share: float
    ) -> None:
        self._preferred = {pair.question: pair.chosen for pair in pairs}
        self._questions = sorted(self._preferred)
        self._model, self._tokenizer, self._share = model, tokenizer, held_out_share

    def sample(self, rng: random.Random, held_out: bool) -> Problem:
        """Draw a question of one side of the split."""

        def draw() -> Problem:
            question = rng.choice(self._questions)
            return Problem(question, text_key(question), answer=self._preferred[question], truth=GENERAL)

        return draw_from_split(draw, held_out, self._share)

    def worked(self, problem: Problem, rng: random.Random) -> str:
        """The preferred answer, without thinking."""
        return render_worked("", problem.answer)

    def soundness(self, problem: Problem, thinking: str) -> float:
        """1: nothing is reckoned that could be false."""
        return 1.0

    @torch.no_grad()
    def grade(self, problem: Problem, answer: str) -> float:
        """The odds that the answer is better than the preferred one, by the reward model."""
        rows = [judged(self._tokenizer, problem.question, text) for text in (answer, problem.answer)]
        ours, preferred = self._model.score(rows, self._tokenizer.pad_id)
        return float(torch.sigmoid(ours - preferred))


@dataclass(frozen=True)
class Scenarios:
    """A task that rules check and general questions beside it, which are `share` of all."""

    checked: Task
    general: GeneralTask
    share: float

    def sample(self, rng: random.Random, held_out: bool) -> Problem:
        """Draw from one of the two."""
        return (self.general if rng.random() < self.share else self.checked).sample(rng, held_out)

    def worked(self, problem: Problem, rng: random.Random) -> str:
        """As the problem's own task works it."""
        return self._of(problem).worked(problem, rng)

    def soundness(self, problem: Problem, thinking: str) -> float:
        """As the problem's own task judges it."""
        return self._of(problem).soundness(problem, thinking)

    def grade(self, problem: Problem, answer: str) -> float:
        """By rule, or by the reward model."""
        return self._of(problem).grade(problem, answer)

    def _of(self, problem: Problem) -> Task:
        return self.general if problem.truth == GENERAL else self.checked
