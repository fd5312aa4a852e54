"""Worked documents: questions with their replies, for fine-tuning and to teach the template beforehand."""

import math
import random
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

from fathom.config import TaskConfig
from fathom.tasks import Problem, Task, build
from fathom.text.chat import render_prompt, render_reply
from fathom.text.disjoint import is_in_range
from fathom.text.tokenizer import Tokenizer

SIZES = (2, 3, 4)  # numbers in an expression document; working out five or six costs far more
STRETCH = 1.5  # how far the numbers of documents reach beyond the task's own, where all else is its own


class Dialogue(NamedTuple):
    """A question and a reply in the template's form, both as text."""

    question: str
    reply: str


class DialogueIds(NamedTuple):
    """A dialogue as token ids; a model is trained on the reply alone."""

    prompt: Int64[np.ndarray, " P"]
    reply: Int64[np.ndarray, " T"]


def worked_dialogues(tokenizer: Tokenizer, task: Task, seed: int, count: int) -> list[DialogueIds]:
    """`count` solved problems of the task's training split; equal for equal arguments."""
    rng = random.Random(seed)
    problems = (task.sample(rng, held_out=False) for _ in range(count))
    return [encode_dialogue(tokenizer, _solve(task, problem, rng)) for problem in problems]


def expression_documents(seed: int, count: int, config: TaskConfig) -> list[Dialogue]:
    """Question and reply in the task's form, none of which is a problem of the task.

    A question has 2 to 4 numbers, but another count than the task's, or a number or a target beyond its largest.
    A model that has read them knows the form (a small R1-Zero needs that much) and has seen no solution.
    """
    rng = random.Random(seed)
    draws = [_drawing(other) for other in _neighbours(config)]
    found: list[Dialogue] = []
    while len(found) < count:
        task, draw = rng.choice(draws)
        problem = draw(rng)
        if not is_in_range(config, problem.numbers, problem.target):
            found.append(_solve(task, problem, rng))
    return found


def encode_dialogue(tokenizer: Tokenizer, dialogue: Dialogue) -> DialogueIds:
    """The ids of prompt and reply, the end of the reply included."""
    prompt = render_prompt(tokenizer, dialogue.question)
    reply = render_reply(tokenizer, dialogue.reply)
    return DialogueIds(np.array(prompt, np.int64), np.array(reply, np.int64))


def _solve(task: Task, problem: Problem, rng: random.Random) -> Dialogue:
    return Dialogue(problem.question, task.worked(problem, rng))


def _drawing(config: TaskConfig) -> tuple[Task, Callable[[random.Random], Problem]]:
    task = build(config)
    return task, lambda rng: task.sample(rng, held_out=False)


def _neighbours(config: TaskConfig) -> list[TaskConfig]:
    """The task at other sizes, and as often at its own with larger numbers.

    Not much larger: what a model learns of rare numbers it must learn again for the task's own.
    """
    plain = replace(config, max_failed_tries=0, fewest_numbers=0, file="")
    if config.kind not in ("countdown", "arithmetic"):  # of another task; those alone have sizes to differ in
        plain = replace(plain, kind="countdown", numbers=min(config.numbers, max(SIZES)), prompt="")
    largest = math.ceil(STRETCH * config.max_number)
    fewest = config.fewest_numbers or config.numbers
    others = [replace(plain, numbers=numbers) for numbers in SIZES if not fewest <= numbers <= config.numbers]
    if plain.numbers not in SIZES:
        return others
    own = replace(plain, max_number=largest, max_target=config.numbers * largest)
    return [*others, *[own] * max(1, len(others))]
