"""Linear equations with a whole solution: 3x+5=26."""

import random

from fathom.config import TaskConfig
from fathom.tasks.drawn import Drawn
from fathom.tasks.task import Problem, text_key


def equation(config: TaskConfig) -> Drawn:
    """ax+b=c with factors and solutions up to `max_number` in size."""
    return Drawn(config, draw, think, accepts)


def draw(rng: random.Random, config: TaskConfig) -> Problem:
    """Factor (2 or more), solution and summand, independently and uniformly; solutions and summands of either sign."""
    largest = config.max_number
    factor = rng.randint(2, max(2, largest))
    solution, summand = rng.randint(-largest, largest), rng.choice((-1, 1)) * rng.randint(1, largest)
    total = factor * solution + summand
    question = f"{factor}x{summand:+d}={total}"
    return Problem(question, text_key(question), (factor, summand, total), solution, str(solution))


def think(problem: Problem) -> str:
    """`3x=26-5,3x=21,x=21/3,x=7`."""
    factor, summand, total = problem.numbers
    rest = total - summand
    return f"{factor}x={total}{-summand:+d},{factor}x={rest},x={rest}/{factor},x={problem.answer}"


def accepts(problem: Problem, answer: str) -> bool:
    """The solution as a plain whole number, with or without `x=`."""
    return answer.replace(" ", "").removeprefix("x=") == problem.answer
