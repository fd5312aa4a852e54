"""Countdown: make the target from the given numbers, each used exactly once (TinyZero's task)."""

import random
from collections.abc import Iterator
from functools import lru_cache
from itertools import combinations, combinations_with_replacement, product
from pathlib import Path
from typing import NamedTuple, TypeVar, cast

from fathom.config import TaskConfig
from fathom.config.task import MOST
from fathom.tasks.expression import Expression, Step, apply_step, join, number, read_steps, uses_up
from fathom.tasks.grade import evaluate
from fathom.tasks.lines import read_lines
from fathom.tasks.task import Problem, draw_count, draw_from_split, is_held_out, problem_key, render_worked, worded

Item = TypeVar("Item", int, Expression)

MAX_REDRAWS = 8  # attempts at a failed try that is new and misses, before a solution shows one fewer

WORDS = (
    "Combine the numbers {numbers} into an expression worth {target}. Use every number exactly once, with brackets and "
    "no other signs than {operators}. Think first; then give the expression alone as the answer, such as (7+2)-3."
)


class Move(NamedTuple):
    """A legal step on a hand of numbers: two places in the hand, and the step between their numbers."""

    left: int
    right: int
    step: Step


class ProblemCount(NamedTuple):
    """How many different problems a config describes."""

    total: int
    held_out: int


def reachable(numbers: tuple[int, ...], operators: str) -> frozenset[int]:
    """Every value that legal steps make of all `numbers`, each used once; give them sorted."""
    # beyond three numbers the sets grow to tens of thousands of values, too many to keep
    return _kept_values(numbers, operators) if len(numbers) <= 3 else _values(numbers, operators)


def _values(numbers: tuple[int, ...], operators: str) -> frozenset[int]:
    if len(numbers) == 1:
        return frozenset(numbers)
    values: set[int] = set()
    for mask in range(1, 2 ** (len(numbers) - 1)):  # the last number stays right: each split once
        left = tuple(n for place, n in enumerate(numbers) if mask >> place & 1)
        right = tuple(n for place, n in enumerate(numbers) if not mask >> place & 1)
        for a, b in product(reachable(left, operators), reachable(right, operators)):
            values.update(step.result for step in _steps(a, b, operators))
    return frozenset(values)


_kept_values = lru_cache(maxsize=1 << 14)(_values)


@lru_cache(maxsize=1 << 14)
def targets(numbers: tuple[int, ...], operators: str, max_target: int) -> tuple[int, ...]:
    """The reachable values from 1 to `max_target`, in order."""
    return tuple(sorted(value for value in reachable(numbers, operators) if 1 <= value <= max_target))


def count_tries(thinking: str) -> int:
    """How many tries a thinking holds; `;` parts them, and an empty one counts for nothing."""
    return sum(1 for attempt in thinking.split(";") if attempt.strip())


def stated(numbers: tuple[int, ...], target: int) -> Problem:
    """The problem in its short form, `8,2,4:10`."""
    return Problem(",".join(map(str, numbers)) + f":{target}", problem_key(numbers, target), numbers, target)


def read_problems(path: Path) -> list[Problem]:
    """Problems from a JSONL file with TinyZero's fields, `nums` and `target`.

    Raises ValueError naming the line that is none.
    """
    problems: list[Problem] = []
    for place, line in read_lines(path):
        numbers, target = line.get("nums"), line.get("target")
        whole = isinstance(numbers, list) and all(type(n) is int and n >= 0 for n in cast(list[object], numbers))
        if not whole or not 2 <= len(cast(list[int], numbers)) <= MOST["countdown"] or type(target) is not int:
            raise ValueError(f"{path} line {place}: it has no nums, 2 to 6 whole numbers, and target, a whole number")
        problems.append(stated(tuple(cast(list[int], numbers)), target))
    return problems


class Countdown:
    """The task under one config.

    A step takes two numbers of the hand, the larger written first, and must stay in the whole numbers 0, 1,
    2, ...; a target counts as reachable when such steps reach it. The grader is wider: it accepts every
    expression over the task's operators that is exactly right, through fractions or negatives too.
    """

    def __init__(self, config: TaskConfig) -> None:
        self.config = config
        self.given = read_problems(Path(config.file)) if config.file else []

    def sample(self, rng: random.Random, held_out: bool) -> Problem:
        """Draw numbers independently and uniformly, then one of their targets, until the split fits.

        Where the config names a file, draw one of its problems.
        """
        draw = (lambda: rng.choice(self.given)) if self.given else (lambda: self._draw(rng))
        words = WORDS.replace("{operators}", " ".join(self.config.operators))
        return worded(draw_from_split(draw, held_out, self.config.held_out_share), self.config.prompt, words)

    def worked(self, problem: Problem, rng: random.Random) -> str:
        """A search in random legal tries, the last one right, and its expression as the answer.

        From 0 to `max_failed_tries` tries fail first, drawn uniformly. They are random play, no try twice,
        and for a training problem none happens to solve a held-out one: demonstrations never leak those.
        """
        failed = self._failed_tries(problem, rng.randint(0, self.config.max_failed_tries), rng)
        solution = _solving_chain(problem, self.config.operators, rng)
        thinking = ";".join([*failed, _render_chain(solution)])
        return render_worked(thinking, _render_answer(problem.numbers, solution))

    def soundness(self, problem: Problem, thinking: str) -> float:
        """Share of the tries that play by the rules: true steps that use every given number once."""
        tries = [attempt for attempt in thinking.split(";") if attempt.strip()]
        return sum(self._is_legal(problem, attempt) for attempt in tries) / max(1, len(tries))

    def grade(self, problem: Problem, answer: str) -> bool:
        """Whether the expression uses exactly the given numbers and the task's operators, and hits the target."""
        outcome = evaluate(answer)
        return (
            outcome is not None
            and outcome.value == problem.target
            and sorted(outcome.numbers) == sorted(problem.numbers)
            and outcome.operators <= set(self.config.operators)
        )

    def random_solver(self, problem: Problem, tries: int, rng: random.Random) -> bool:
        """Whether one of `tries` independent rounds of random legal play hits: the control of any claim."""
        chains = (_random_chain(problem.numbers, self.config.operators, rng) for _ in range(tries))
        return any(_result(problem.numbers, chain) == problem.target for chain in chains)

    def count_problems(self) -> ProblemCount:
        """Count all problems by enumeration (0.1 s for 3 numbers to 20; grows as max_number ** numbers)."""
        held_out = [is_held_out(key, self.config.held_out_share) for key in self._all_keys()]
        return ProblemCount(total=len(held_out), held_out=sum(held_out))

    def _all_keys(self) -> Iterator[str]:
        config = self.config
        for numbers in combinations_with_replacement(range(1, config.max_number + 1), config.numbers):
            for target in targets(numbers, config.operators, config.max_target):
                yield problem_key(numbers, target)

    def _is_legal(self, problem: Problem, attempt: str) -> bool:
        steps = read_steps(attempt)
        if steps is None or not uses_up(steps, problem.numbers):
            return False
        return all(step.operator in self.config.operators for step in steps)

    def _draw(self, rng: random.Random) -> Problem | None:
        config = self.config
        numbers = tuple(rng.randint(1, config.max_number) for _ in range(draw_count(rng, config)))
        options = targets(tuple(sorted(numbers)), config.operators, config.max_target)
        if not options:
            return None
        target = rng.choice(options)
        return stated(numbers, target)

    def _failed_tries(self, problem: Problem, count: int, rng: random.Random) -> list[str]:
        tries: list[str] = []
        for _ in range(count):
            for _ in range(MAX_REDRAWS):
                chain = _random_chain(problem.numbers, self.config.operators, rng)
                text = _render_chain(chain)
                if text and text not in tries and not self._gives_away(problem, chain):
                    tries.append(text)
                    break
        return tries

    def _gives_away(self, problem: Problem, chain: list[Move]) -> bool:
        result = _result(problem.numbers, chain)
        if result is None:
            return False
        share = self.config.held_out_share
        leaks = is_held_out(problem_key(problem.numbers, result), share) and not is_held_out(problem.key, share)
        return result == problem.target or leaks


def _steps(a: int, b: int, operators: str) -> list[Step]:
    large, small = max(a, b), min(a, b)
    results = ((operator, apply_step(large, operator, small)) for operator in operators)
    return [Step(large, operator, small, result) for operator, result in results if result is not None]


def _moves(hand: list[int], operators: str) -> list[Move]:
    moves: list[Move] = []
    for i, j in combinations(range(len(hand)), 2):
        left, right = (i, j) if hand[i] >= hand[j] else (j, i)
        moves.extend(Move(left, right, step) for step in _steps(hand[i], hand[j], operators))
    return moves


def _play(hand: list[Item], move: Move, made: Item) -> list[Item]:
    """The hand after a move: its two items gone, what was made of them last."""
    return [item for place, item in enumerate(hand) if place not in (move.left, move.right)] + [made]


def _random_chain(numbers: tuple[int, ...], operators: str, rng: random.Random) -> list[Move]:
    """Uniformly random legal moves until one number is left, or (division alone) no move is legal."""
    hand, chain = list(numbers), list[Move]()
    while moves := _moves(hand, operators):
        move = rng.choice(moves)
        chain.append(move)
        hand = _play(hand, move, move.step.result)
    return chain


def _solving_chain(problem: Problem, operators: str, rng: random.Random) -> list[Move]:
    """Random moves among those from which the target is still in reach."""
    hand, chain = list(problem.numbers), list[Move]()
    while len(hand) > 1:
        futures = [(move, _play(hand, move, move.step.result)) for move in _moves(hand, operators)]
        alive = [(move, later) for move, later in futures if problem.target in reachable(_sorted(later), operators)]
        if not alive:
            raise ValueError(f"problem {problem.question!r} has no solution with task.operators={operators!r}")
        move, hand = rng.choice(alive)
        chain.append(move)
    return chain


def _sorted(hand: list[int]) -> tuple[int, ...]:
    return tuple(sorted(hand))


def _result(numbers: tuple[int, ...], chain: list[Move]) -> int | None:
    return chain[-1].step.result if len(chain) == len(numbers) - 1 else None


def _render_chain(chain: list[Move]) -> str:
    return ",".join(str(move.step) for move in chain)


def _render_answer(numbers: tuple[int, ...], chain: list[Move]) -> str:
    hand = [number(n) for n in numbers]
    for move in chain:
        hand = _play(hand, move, join(hand[move.left], move.step.operator, hand[move.right]))
    return str(hand[0])
