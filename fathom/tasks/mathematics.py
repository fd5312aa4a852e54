r"""Mathematics from a JSONL file, as GSM8K and MATH are published: a question, and a solution that ends in its answer.

A line has `question` or `problem`, and `answer`, with GSM8K's mark `#### 42` or plain, or `solution` with a `\boxed{}`.
What stands before the answer is kept as the worked solution.
"""

from pathlib import Path
from typing import Any

from fathom.config import TaskConfig
from fathom.tasks.answer import canonical, last_boxed
from fathom.tasks.given import Given
from fathom.tasks.lines import read_lines
from fathom.tasks.task import Problem, text_key
from fathom.tasks.verify import verify

MARK = "####"


def mathematics(config: TaskConfig) -> Given:
    """The task of `config.file`; answers are compared by value, and by math-verify where the config says so."""

    def accepts(problem: Problem, answer: str) -> float:
        given = last_boxed(answer) or answer
        if canonical(given) == canonical(problem.answer):
            return 1.0
        return verify(problem.answer, given, config) if config.math_verify else 0.0

    return Given(config, read_problems(Path(config.file)), accepts)


def read_problems(path: Path) -> list[Problem]:
    """All problems of a file. Raises ValueError naming the line that is none."""
    problems: list[Problem] = []
    for number, line in read_lines(path):
        try:
            problems.append(_problem({name.lower(): value for name, value in line.items()}))
        except ValueError as error:
            raise ValueError(f"{path} line {number}: {error}") from None
    return problems


def _problem(line: dict[str, Any]) -> Problem:
    question = line.get("question", line.get("problem"))
    if not isinstance(question, str) or not question.strip():
        raise ValueError("it has no question, a text")
    given, solution = line.get("answer"), line.get("solution")
    reasoning = solution.strip() if isinstance(solution, str) else ""
    if isinstance(given, str) and MARK in given:
        reasoning, _, answer = (part.strip() for part in given.rpartition(MARK))
    elif isinstance(given, str | int) and not isinstance(given, bool):
        answer = str(given).strip()
    else:
        answer = last_boxed(reasoning) or ""
    if not answer:
        raise ValueError("it has no answer: a text, a number, #### and a number, or a solution with \\boxed{}")
    return Problem(question.strip(), text_key(question), answer=answer, reasoning=reasoning)
