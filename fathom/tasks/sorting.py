"""Sorting whole numbers: sort 31,4,15."""

import random

from fathom.config import TaskConfig
from fathom.tasks.drawn import Drawn, is_listed
from fathom.tasks.task import Problem, draw_count, text_key


def sorting(config: TaskConfig) -> Drawn:
    """Lists of `numbers` whole numbers from 0 to `max_number`, to be put in rising order."""
    return Drawn(config, draw, think, is_listed)


def draw(rng: random.Random, config: TaskConfig) -> Problem | None:
    """Independent, uniform entries; a list that is in order already is no problem. Its key knows no order."""
    numbers = tuple(rng.randint(0, config.max_number) for _ in range(draw_count(rng, config)))
    answer = ",".join(map(str, sorted(numbers)))
    question = "sort " + ",".join(map(str, numbers))
    return None if list(numbers) == sorted(numbers) else Problem(question, text_key("sort " + answer), (), 0, answer)


def think(problem: Problem) -> str:
    """The list after every smallest remaining entry that is put in front: selection sort."""
    numbers = [int(entry) for entry in (problem.bare or problem.question).removeprefix("sort ").split(",")]
    states: list[str] = []
    for place in range(len(numbers) - 1):
        smallest = min(range(place, len(numbers)), key=numbers.__getitem__)
        numbers.insert(place, numbers.pop(smallest))
        states.append(",".join(map(str, numbers)))
    return ";".join(states)
