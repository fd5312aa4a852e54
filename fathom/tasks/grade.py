"""An exact checker of arithmetic expressions that runs nothing: text, syntax tree, fractions."""

import ast
import re
from dataclasses import dataclass
from fractions import Fraction

MAX_CHARACTERS = 200
MAX_DIGITS = 12  # of one number
MAX_DEPTH = 20  # brackets within brackets

_ALLOWED = re.compile(r"[0-9+\-*/() ]+")  # not \d, which takes digits of every script
_LONG_NUMBER = re.compile(rf"[0-9]{{{MAX_DIGITS + 1},}}")
_OPERATORS: dict[type[ast.operator], str] = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/"}


@dataclass(frozen=True)
class Evaluation:
    """What an expression is worth, and what it was made of."""

    value: Fraction
    numbers: tuple[int, ...]  # in order of appearance, repeats kept
    operators: frozenset[str]


def evaluate(expression: str) -> Evaluation | None:
    """The exact value of + - * / and brackets over non-negative decimal integers; None for all else.

    Refused are powers, `//`, a sign in front of a number or bracket (the worked form has no negative
    numbers, and a sign would be an operation that uses none), names, calls, points, underscores, digits of
    other scripts, division by zero, and anything above the limits of this file, which keep the cost of
    hostile text under a millisecond. Spaces are ignored.
    """
    text = expression[: MAX_CHARACTERS + 1].strip(" ")
    if not _within_limits(text):
        return None
    try:
        tree = ast.parse(text, mode="eval")
    except SyntaxError:
        return None
    numbers: list[int] = []
    operators: set[str] = set()
    value = _walk(tree.body, numbers, operators)
    return None if value is None else Evaluation(value, tuple(numbers), frozenset(operators))


def _within_limits(text: str) -> bool:
    if len(text) > MAX_CHARACTERS or not _ALLOWED.fullmatch(text) or _LONG_NUMBER.search(text):
        return False
    depth = 0
    for character in text:
        depth += (character == "(") - (character == ")")
        if not 0 <= depth <= MAX_DEPTH:
            return False
    return depth == 0


def _walk(node: ast.expr, numbers: list[int], operators: set[str]) -> Fraction | None:
    match node:
        case ast.Constant(value=int(number)):
            numbers.append(number)
            return Fraction(number)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            operator = _OPERATORS[type(op)]
            operators.add(operator)
            a = _walk(left, numbers, operators)
            b = _walk(right, numbers, operators)
            return None if a is None or b is None else _apply(a, operator, b)
        case _:
            return None


def _apply(left: Fraction, operator: str, right: Fraction) -> Fraction | None:
    match operator:
        case "+":
            return left + right
        case "-":
            return left - right
        case "*":
            return left * right
        case _:
            return left / right if right else None
