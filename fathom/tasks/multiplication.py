"""Multiplication of two whole numbers, worked by splitting the second (TinyZero's other task)."""

import random

from fathom.config import TaskConfig
from fathom.tasks.drawn import Drawn, is_exactly
from fathom.tasks.task import Problem, problem_key


def multiplication(config: TaskConfig) -> Drawn:
    """Factors from 0 to `max_number`, such as 47*83."""
    return Drawn(config, draw, think, is_exactly)


def draw(rng: random.Random, config: TaskConfig) -> Problem:
    """Two factors, independently and uniformly; which one comes first does not matter to the key."""
    a, b = (rng.randint(0, config.max_number) for _ in range(2))
    return Problem(f"{a}*{b}", problem_key((a, b), a * b), (a, b), a * b, str(a * b))


def think(problem: Problem) -> str:
    """`47*80=3760,47*3=141,3760+141=3901`: the second factor digit by digit, then the sums."""
    a, b = problem.numbers
    places = [int(digit) * 10**power for power, digit in enumerate(reversed(str(b))) if digit != "0"]
    steps = [f"{a}*{part}={a * part}" for part in reversed(places)] or [f"{a}*0=0"]
    total, *others = [a * part for part in reversed(places)] or [0]
    for other in others:
        steps.append(f"{total}+{other}={total + other}")
        total += other
    return ",".join(steps)
