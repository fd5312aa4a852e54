"""Whole-number steps, and expressions written with no bracket that could be spared."""

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
