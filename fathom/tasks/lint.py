"""`fathom reward lint FILE`: attacks on the check of a task of one's own, before a model finds them."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from fathom.config import TaskConfig
from fathom.tasks.attacks import BLIND, around
from fathom.tasks.custom import Custom, custom
from fathom.tasks.task import GradingError, Problem

Fault = Literal["paid", "timeout", "crash"]
PROBLEMS = 3  # each attacked in turn by a third of the blind attacks


@dataclass(frozen=True)
class Finding:
    """What one attack did to the check."""

    attack: str
    fault: Fault
    detail: str

    def __str__(self) -> str:
        return f"{self.fault:8}{self.attack}: {self.detail}"


@dataclass(frozen=True)
class Lint:
    """What was tried, and what it found; no findings are no proof."""

    tried: int
    findings: list[Finding]

    def __str__(self) -> str:
        if not self.findings:
            return f"{self.tried} attacks, none was paid, none broke the check"
        return "\n".join(
            [*map(str, self.findings), f"{self.tried} attacks, {len(self.findings)} of them found a fault"]
        )


def lint(config: TaskConfig, seed: int = 0) -> Lint:
    """Attack the check of `config.file`; deterministic in the seed."""
    task, rng = custom(config), random.Random(seed)
    problems = [task.sample(rng, held_out=False) for _ in range(PROBLEMS)]
    tried, findings = 0, list[Finding]()
    for name, problem, answer in _attacks(task, problems, rng):
        tried += 1
        finding = _attack(task, name, problem, answer)
        if finding:
            findings.append(finding)
    return Lint(tried, findings)


def _attacks(task: Custom, problems: list[Problem], rng: random.Random) -> Iterator[tuple[str, Problem, str]]:
    for place, (name, answer) in enumerate(BLIND.items()):
        yield name, problems[place % len(problems)], answer
    for problem in problems[:1]:
        right = _right_answer(task, problem, rng)
        if right is not None:
            for name, answer in around(problem.question, right).items():
                yield name, problem, answer


def _right_answer(task: Custom, problem: Problem, rng: random.Random) -> str | None:
    """An answer that the check pays in full: that of the file's own solution, or the truth as text."""
    if task.solve is not None:
        candidate = task.worked(problem, rng).partition("<answer>")[2].partition("</answer>")[0]
    else:
        candidate = problem.truth.strip('"')
    try:
        return candidate if task.grade(problem, candidate) == 1 else None
    except (GradingError, TimeoutError):
        return None


def _attack(task: Custom, name: str, problem: Problem, answer: str) -> Finding | None:
    try:
        paid = task.grade(problem, answer)
    except TimeoutError as error:
        return Finding(name, "timeout", str(error))
    except GradingError as error:
        return Finding(name, "crash", " ".join(str(error).split())[-160:])
    if paid == 0:
        return None
    shown = answer if len(answer) <= 60 else answer[:57] + "..."
    return Finding(name, "paid", f"{paid:g} for {shown!r} to {problem.question[:60]!r}")
