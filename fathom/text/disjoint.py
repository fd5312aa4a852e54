"""Which problems a text gives away: the check that pretraining holds no solution of the task."""

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from fathom.config import TaskConfig
from fathom.tasks.task import problem_key

_QUESTION = re.compile(r"(\d+(?:,\d+)+):(\d+)")
_STEP = r"\d+[-+*/]\d+=\d+"
_CHAIN = re.compile(f"{_STEP}(?:,{_STEP})+")


class Stated(NamedTuple):
    """Numbers and what a text says they make."""

    numbers: tuple[int, ...]
    target: int


def stated_problems(text: str) -> Iterator[Stated]:
    """Every question `8,2,4:10` and every chain `8+4=12,12-2=10` in `text`, as the problem it states.

    A chain states a problem when it uses up all its results but the last. A single sum states none.
    """
    for numbers, target in _QUESTION.findall(text):
        yield Stated(tuple(map(int, numbers.split(","))), int(target))
    for chain in _CHAIN.findall(text):
        stated = _chain_problem(chain)
        if stated is not None:
            yield stated


def is_in_range(config: TaskConfig, numbers: tuple[int, ...], target: int) -> bool:
    """Whether the task could ask this: as many numbers, numbers and target within its limits."""
    fewest = config.fewest_numbers or config.numbers
    fits = fewest <= len(numbers) <= config.numbers and all(1 <= number <= config.max_number for number in numbers)
    return fits and 1 <= target <= config.max_target


def given_away(texts: Iterable[str], config: TaskConfig) -> set[str]:
    """Canonical keys of the task's problems that `texts` state; empty is the proof of a clean corpus."""
    return {
        problem_key(stated.numbers, stated.target)
        for text in texts
        for stated in stated_problems(text)
        if is_in_range(config, stated.numbers, stated.target)
    }


def _chain_problem(chain: str) -> Stated | None:
    numbers: list[int] = []
    results: list[int] = []
    for step in chain.split(","):
        left, right, result = map(int, re.findall(r"\d+", step))
        for operand in (left, right):
            if operand in results:
                results.remove(operand)
            else:
                numbers.append(operand)
        results.append(result)
    return Stated(tuple(numbers), results[0]) if len(results) == 1 else None
