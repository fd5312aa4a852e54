"""Whole-number steps, and expressions written with no bracket that could be spared."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

INVERSE = {"+": "-", "-": "+", "*": "/", "/": "*"}


class Step(NamedTuple):
    """One worked step, written `8+2=10`."""

    left: int
    operator: str
    right: int
    result: int

    def __str__(self) -> str:
        return f"{self.left}{self.operator}{self.right}={self.result}"


def apply_step(left: int, operator: str, right: int) -> int | None:
    """The result of a step, or None where it would leave the whole numbers 0, 1, 2, ..."""
    match operator:
        case "+":
            return left + right
        case "-":
            return left - right if left >= right else None
        case "*":
            return left * right
        case "/":
            return left // right if right and left % right == 0 else None
        case _:
            raise ValueError(f"operator {operator!r} is none of + - * /")


def read_steps(text: str) -> list[Step] | None:
    """The steps of a chain such as `8+4=12,12-2=10`; None if it is anything else or one of them is not true."""
    steps: list[Step] = []
    for part in text.split(","):
        found = re.fullmatch(r"([0-9]{1,9})([+\-*/])([0-9]{1,9})=([0-9]{1,18})", part.strip(" "))
        if found is None:
            return None
        step = Step(int(found[1]), found[2], int(found[3]), int(found[4]))
        if apply_step(step.left, step.operator, step.right) != step.result:
            return None
        steps.append(step)
    return steps


def uses_up(steps: Sequence[Step], numbers: Sequence[int]) -> bool:
    """Whether the steps take every number once, and every result but the last, and nothing else."""
    hand = Counter(numbers)
    for step in steps:
        hand.subtract((step.left, step.right))
        if min(hand.values()) < 0:
            return False
        hand[step.result] += 1
    return hand.total() == 1


@dataclass(frozen=True)
class Expression:
    """A number, or a flat run of parts on one level of precedence.

    Flat means that 10-(8-4) is kept as 10-8+4 and 8/(4/2) as 8/4*2, which exact arithmetic allows. What
    remains to be bracketed is a sum inside a product: no smaller number of brackets says the same.
    """

    level: str  # "+" a sum, "*" a product, "" a single number
    parts: tuple[tuple[str, str], ...]  # operator in front, text; the first operator is never written

    def __str__(self) -> str:
        first, *others = self.parts
        return first[1] + "".join(operator + text for operator, text in others)


def number(value: int) -> Expression:
    """The expression that is one given number."""
    return Expression("", (("", str(value)),))


def join(left: Expression, operator: str, right: Expression) -> Expression:
    """`left operator right`, flattened."""
    level = "+" if operator in "+-" else "*"
    right_parts = _parts(right, level)
    if operator in "-/":
        right_parts = tuple((INVERSE[inner], text) for inner, text in right_parts)
    return Expression(level, _parts(left, level) + right_parts)


def _parts(expression: Expression, level: str) -> tuple[tuple[str, str], ...]:
    if expression.level == level:
        return expression.parts
    text = f"({expression})" if expression.level == "+" else str(expression)
    return ((level, text),)
