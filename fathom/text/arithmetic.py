"""Worked arithmetic, generated: the sums a Countdown solver must know before it can search.

A document is a handful of lines of one kind, at about 25 tokens where integers are single tokens.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass

from fathom.config import TaskConfig
from fathom.tasks.expression import Step, apply_step
from fathom.text.disjoint import is_in_range, stated_problems

LARGE = 999  # the largest integer that is one token
MAX_REDRAWS = 20


@dataclass(frozen=True, kw_only=True)
class Range:
    """What the lines may hold: integers from 0 to `max_value`, these operators, no problem of `task`."""

    max_value: int = 99
    operators: str = "+-"
    task: TaskConfig | None = None


def arithmetic_documents(
    seed: int, count: int, max_value: int = 99, operators: str = "+-", task: TaskConfig | None = None
) -> list[str]:
    """`count` documents, equal for equal arguments; no chain in them states a problem of `task`."""
    if max_value < 2 or max_value > LARGE:
        raise ValueError(f"max_value={max_value} is outside 2..{LARGE}, the integers that are one token")
    rng = random.Random(seed)
    limits = Range(max_value=max_value, operators=operators, task=task)
    weights = [kind.weight for kind in KINDS]
    return [_document(rng, kind, limits) for kind in rng.choices(KINDS, weights, k=count)]


def fact(rng: random.Random, limits: Range) -> Step:
    """One step, its operator uniform, its largest number uniform."""
    operator = rng.choice(limits.operators)
    if operator in "+-":
        whole = rng.randint(1, limits.max_value)
        part = rng.randint(0, whole)
        return Step(part, "+", whole - part, whole) if operator == "+" else Step(whole, "-", part, whole - part)
    left = rng.randint(1, limits.max_value)
    right = rng.randint(1, limits.max_value // left)
    return Step(left, "*", right, left * right) if operator == "*" else Step(left * right, "/", left, right)


def chain(rng: random.Random, limits: Range) -> str:
    """Two or three steps, each taking up the result before."""
    for _ in range(MAX_REDRAWS):
        steps = [fact(rng, limits)]
        for _ in range(rng.randint(1, 2)):
            steps.append(_next_step(rng, steps[-1].result, limits))
        line = ",".join(map(str, steps))
        task = limits.task
        if task is None or not any(is_in_range(task, *stated) for stated in stated_problems(line)):
            return line
    return str(fact(rng, limits))


def family(rng: random.Random, limits: Range) -> str:
    """The four facts of one sum."""
    whole = rng.randint(1, limits.max_value)
    part = rng.randint(0, whole)
    rest = whole - part
    return f"{part}+{rest}={whole}\n{rest}+{part}={whole}\n{whole}-{part}={rest}\n{whole}-{rest}={part}"


def missing(rng: random.Random, limits: Range) -> str:
    """An operand to be found: `17+?=43:26`."""
    left, operator, right, result = fact(rng, limits)
    hidden = rng.choice((f"?{operator}{right}={result}:{left}", f"{left}{operator}?={result}:{right}"))
    # what times 0 is 0, and the like, has no single answer
    return hidden if 0 not in (left, right) else f"{left}{operator}{right}=?:{result}"


def comparison(rng: random.Random, limits: Range) -> str:
    """Two integers in order: `17<26`."""
    left, right = rng.randint(0, limits.max_value), rng.randint(0, limits.max_value)
    sign = "<" if left < right else ">" if left > right else "="
    return f"{left}{sign}{right}"


def splits(rng: random.Random, limits: Range) -> str:
    """Ways to make one value: `43=17+26=50-7=40+3`."""
    value = rng.randint(1, limits.max_value)
    ways = [str(value)]
    for _ in range(rng.randint(2, 4)):
        if rng.random() < 0.5:
            part = rng.randint(0, value)
            ways.append(f"{part}+{value - part}")
        else:
            whole = rng.randint(value, limits.max_value)
            ways.append(f"{whole}-{whole - value}")
    return "=".join(ways)


def counting(rng: random.Random, limits: Range) -> str:
    """An arithmetic progression, up or down."""
    step = rng.randint(1, max(1, min(12, limits.max_value // 8)))
    first = rng.randint(0, step)
    values = list(range(first, limits.max_value + 1, step))
    start = rng.randint(0, max(0, len(values) - 10))
    values = values[start : start + 10]
    return ",".join(map(str, values if rng.random() < 0.5 else reversed(values)))


def table(rng: random.Random, limits: Range) -> str:
    """Five neighbours of the multiplication table."""
    factor, first = rng.randint(2, 12), rng.randint(1, 8)
    return "\n".join(f"{factor}*{k}={factor * k}" for k in range(first, first + 5))


def large(rng: random.Random, limits: Range) -> str:
    """A sum or difference up to 999."""
    return str(fact(rng, Range(max_value=LARGE)))


@dataclass(frozen=True)
class Kind:
    """A kind of line, how many make a document, and its share of all documents."""

    line: Callable[[random.Random, Range], str]
    lines: int
    weight: int


def _drill(rng: random.Random, limits: Range) -> str:
    return str(fact(rng, limits))


KINDS = (
    Kind(_drill, lines=5, weight=30),
    Kind(chain, lines=2, weight=30),
    Kind(family, lines=1, weight=10),
    Kind(missing, lines=3, weight=8),
    Kind(splits, lines=2, weight=8),
    Kind(comparison, lines=6, weight=4),
    Kind(counting, lines=1, weight=4),
    Kind(large, lines=4, weight=4),
    Kind(table, lines=1, weight=2),
)


def _document(rng: random.Random, kind: Kind, limits: Range) -> str:
    return "\n".join(kind.line(rng, limits) for _ in range(kind.lines))


def _next_step(rng: random.Random, value: int, limits: Range) -> Step:
    """A step between `value` and another number, on either side of the sign, that stays within the range."""
    while True:
        operator = rng.choice(limits.operators)
        other = rng.randint(0, limits.max_value)  # 0 leaves every operator a way on
        left, right = rng.choice(((value, other), (other, value)))
        result = apply_step(left, operator, right)
        if result is not None and result <= limits.max_value:
            return Step(left, operator, right, result)
