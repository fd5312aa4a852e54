"""A task of one's own: sums of two numbers. `fathom grpo --task.kind custom --task.file recipes/sums.py`."""

import random


def prompt(rng: random.Random) -> tuple[str, int]:
    """A question, and what the check must know."""
    a, b = rng.randint(1, 99), rng.randint(1, 99)
    return f"{a}+{b}", a + b


def check(answer: str, truth: int) -> bool:
    """Whether the text between the answer tags is right."""
    return answer.strip(" ") == str(truth)


def worked(truth: int, rng: random.Random) -> str:
    """A reply for the cold start; may be left out where there is none."""
    return f"it is {truth}</think><answer>{truth}</answer>"
