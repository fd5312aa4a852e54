"""Arithmetic: the value of an expression such as 17+26*2, worked out step by step."""

import random
import re

from fathom.config import TaskConfig
from fathom.tasks.expression import Step, apply_step, read_steps, uses_up
from fathom.tasks.task import Problem, draw_count, draw_from_split, problem_key, render_worked, worded

WORDS = "What is {question}?"


class Arithmetic:
    """The task under one config: `numbers` operands from 1 to `max_number`, values from 0 to `max_target`.

    Every step of a question stays in the whole numbers 0, 1, 2, ..., so no value is negative or a fraction.
    """

    def __init__(self, config: TaskConfig) -> None:
        self.config = config

    def sample(self, rng: random.Random, held_out: bool) -> Problem:
        """Draw operands and operators independently and uniformly until the steps are legal and the split fits."""
        problem = draw_from_split(lambda: self._draw(rng), held_out, self.config.held_out_share)
        return worded(problem, self.config.prompt, WORDS)

    def worked(self, problem: Problem, rng: random.Random) -> str:
        """The steps in the order of precedence, then the value; one way only, so `rng` is not drawn from."""
        steps = work_out(problem.bare or problem.question)
        if steps is None:
            raise ValueError(f"question {problem.question!r} has a step outside the whole numbers")
        return render_worked(",".join(map(str, steps)), str(steps[-1].result))

    def soundness(self, problem: Problem, thinking: str) -> float:
        """1 if the thinking is a chain of true steps that uses the question's numbers up, else 0."""
        steps = read_steps(thinking)
        return float(steps is not None and uses_up(steps, problem.numbers))

    def grade(self, problem: Problem, answer: str) -> bool:
        """Whether the answer is the value as a plain integer; the question said again is no answer."""
        return answer.strip(" ") == str(problem.target)

    def _draw(self, rng: random.Random) -> Problem | None:
        config = self.config
        numbers = tuple(rng.randint(1, config.max_number) for _ in range(draw_count(rng, config)))
        question = str(numbers[0]) + "".join(f"{rng.choice(config.operators)}{n}" for n in numbers[1:])
        steps = work_out(question)
        if steps is None or steps[-1].result > config.max_target:
            return None
        target = steps[-1].result
        return Problem(question, problem_key(numbers, target), numbers, target)


def work_out(question: str) -> list[Step] | None:
    """The steps that reduce an unbracketed expression, * and / before + and -, from the left.

    None when a step would leave the whole numbers. Raises ValueError for text of another form.
    """
    if not re.fullmatch(r"[0-9]+([+\-*/][0-9]+)+", question):
        raise ValueError(f"question {question!r} is not of the form 17+26*2")
    terms = [int(term) for term in re.split(r"[+\-*/]", question)]
    operators = re.findall(r"[+\-*/]", question)
    steps: list[Step] = []
    while operators:
        place = next((k for k, operator in enumerate(operators) if operator in "*/"), 0)
        operator = operators.pop(place)
        left, right = terms[place], terms.pop(place + 1)
        result = apply_step(left, operator, right)
        if result is None:
            return None
        terms[place] = result
        steps.append(Step(left, operator, right, result))
    return steps
