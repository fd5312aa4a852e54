"""Words of random letters, to be reversed, put in order, or counted in."""

import random

from fathom.config import TaskConfig
from fathom.tasks.drawn import Drawn, is_exactly
from fathom.tasks.task import Problem, draw_count, text_key

LETTERS = "abcdefghijklmnopqrstuvwxyz"
VARIETY = 4  # letters that most of a word to count in is made of, so that counts exceed 1


def strings(config: TaskConfig) -> Drawn:
    """Words of `numbers` letters; the three orders in equal shares."""
    return Drawn(config, draw, think, is_exactly)


def draw(rng: random.Random, config: TaskConfig) -> Problem:
    """`reverse kamilo`, `order kamilo` or `count a in banana`."""
    length = draw_count(rng, config)
    order = rng.choice(("reverse", "order", "count"))
    if order == "count":
        few = rng.sample(LETTERS, VARIETY)
        word, letter = "".join(rng.choices(few, k=length)), rng.choice(few)
        question, answer = f"count {letter} in {word}", str(word.count(letter))
    else:
        word = "".join(rng.choices(LETTERS, k=length))
        question = f"{order} {word}"
        answer = word[::-1] if order == "reverse" else "".join(sorted(word))
    return Problem(question, text_key(question), (), 0, answer)


def think(problem: Problem) -> str:
    """Letter by letter: the growing word, or the count so far."""
    order, *rest = (problem.bare or problem.question).split(" ")
    word = rest[-1]
    if order == "count":
        return ",".join(f"{letter}{word[: place + 1].count(rest[0])}" for place, letter in enumerate(word))
    return ",".join(problem.answer[: place + 1] for place in range(len(word)))
