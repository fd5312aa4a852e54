"""Held-out accuracy while the policy learns: the same few problems every time, none of which is ever trained on."""

from collections.abc import Sequence
from dataclasses import dataclass

from fathom.config import GRPOConfig
from fathom.eval.passk import wilson
from fathom.infer.engine import Engine
from fathom.infer.request import Request
from fathom.parallel.world import World
from fathom.rl.reward import score
from fathom.rl.sampling import Answer, sample_round
from fathom.tasks import Problem, Task, distinct_problems
from fathom.text.chat import read_reply, render_prompt
from fathom.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class HeldOut:
    """This process's share of the problems, and how answers to them are drawn and graded."""

    problems: Sequence[Problem]
    requests: Sequence[Request]
    task: Task
    tokenizer: Tokenizer
    config: GRPOConfig
    world: World

    @classmethod
    def draw(cls, task: Task, tokenizer: Tokenizer, config: GRPOConfig, seed: int, world: World) -> "HeldOut | None":
        """`config.held_out_questions` distinct held-out problems; None where the config asks for no measurement.

        Each keeps the seed of its one answer, so between two measurements nothing but the weights differs. Raises
        ValueError where the task holds out fewer.
        """
        if not config.held_out_every:
            return None
        try:
            every = distinct_problems(task, config.held_out_questions, seed)
        except ValueError as error:
            raise ValueError(
                f"grpo.held_out_questions={config.held_out_questions} cannot be drawn: {error}; "
                "or measure nothing with grpo.held_out_every=0"
            ) from None
        places = range(world.rank, len(every), world.size)
        requests = [
            Request(
                prompt=render_prompt(tokenizer, every[place].question),
                sampling=config.sampling,
                seed=seed * config.held_out_questions + place,
                stop_ids=tokenizer.stop_ids,
            )
            for place in places
        ]
        return cls([every[place] for place in places], requests, task, tokenizer, config, world)

    def is_due(self, step: int) -> bool:
        """Whether the weights behind `step` finished steps are measured."""
        return step % self.config.held_out_every == 0

    def measure(self, engine: Engine) -> dict[str, float]:
        """The share of right answers, one a problem, sampled as in training, with Wilson's 95 % interval.

        Answers that nobody could grade are left out and counted in `held_out_ungraded`; without any graded one that
        count is all there is.
        """
        engine.swap_weights()

        def graded(place: int, answer: Answer) -> float | None:
            reply = read_reply(self.tokenizer, answer.whole.tokens)
            return score(self.task, self.problems[place], reply, self.config.reward).accuracy

        found = sample_round(engine, self.requests, graded, threads=self.config.graders).results
        accuracies = [accuracy for (accuracy,) in found if accuracy is not None]
        right, answers, lost = self.world.sum_numbers(
            sum(accuracy == 1 for accuracy in accuracies), len(accuracies), len(found) - len(accuracies)
        )
        ungraded = {"held_out_ungraded": lost} if lost else {}
        if not answers:
            return ungraded
        low, high = wilson(round(right), round(answers))
        return {
            "held_out_accuracy": right / answers, "held_out_low": low, "held_out_high": high, **ungraded
        }  # fmt: skip
