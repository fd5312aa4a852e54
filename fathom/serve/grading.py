"""The verifier: answers to problems of the run's own task, checked by the rule that its training rewards.

Only the kinds whose checks are Fathom's own are served: an answer is compared or parsed, never run.
"""

import asyncio
import random
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TypedDict

from fastapi import APIRouter
from starlette.responses import Response

from fathom.config import TaskConfig
from fathom.runs import Run
from fathom.serve.errors import ApiError, json_response
from fathom.serve.gate import unknown_header
from fathom.serve.schema import GradeRequest
from fathom.tasks import FOREIGN, Task, build
from fathom.tasks.posed import read_question
from fathom.text.chat import parse_reply
from fathom.text.special import THINK_END

OFFERED = 4  # problems at once


class Verdict(TypedDict):
    """What an answer is worth: `task` None where the question is no problem of the task."""

    task: str | None
    question: str
    answer: str | None  # as it was read; None where there is none
    score: float | None  # 1 where it is right, 0 where it is wrong or missing


class Verifier:
    """Grades by one task, which is built when it is first asked for."""

    def __init__(self, config: TaskConfig, offered: TaskConfig | None = None) -> None:
        self.config = replace(config, math_verify=False)  # which would ask a child process
        self.offered = offered  # the problems that the model is offered; None offers none
        self._task: Task | None = None
        self._drawn: Task | None = None

    def grade(self, question: str, content: str) -> Verdict:
        """The verdict on what an assistant said. Raises ValueError where the task's file is gone."""
        none: Verdict = {"task": None, "question": question, "answer": None, "score": None}
        if self.config.kind in FOREIGN:
            return none
        self._task = self._task or build(self.config)
        problem = read_question(question, self.config, self._task)
        if problem is None:
            return none
        answer = read_answer(content)
        score = 0.0 if answer is None else float(self._task.grade(problem, answer))
        return {"task": self.config.kind, "question": problem.question, "answer": answer, "score": score}

    def draw(self, count: int) -> list[str]:
        """Questions of the held-out side, other ones each time; none of a task that is not graded here."""
        if self.offered is None or self.offered.kind in FOREIGN:
            return []
        self._drawn = self._drawn or build(replace(self.offered, math_verify=False))
        rng = random.Random()
        return [self._drawn.sample(rng, held_out=True).question for _ in range(count)]


def read_answer(content: str) -> str | None:
    """The answer in what an assistant said behind its thinking: what stands between the tags, else the whole text."""
    content = content.rpartition(THINK_END)[2].strip()
    if "<answer>" in content:
        return parse_reply(THINK_END + content).answer
    return content or None


def verifier_of(source: Path, uses_template: bool) -> Verifier:
    """Grades the task of a run; for a model without one, Countdown with all operators.

    A model that knows Fathom's template is taken to know Countdown's short form, so it is offered problems.
    """
    for path in (source, *source.resolve().parents[:2]):  # a run, or RUN/STAGE/step_000050
        if (path / "ledger.jsonl").exists():
            task = Run(path).config.task
            return Verifier(task, task)
    return Verifier(TaskConfig(operators="+-*/"), TaskConfig() if uses_template else None)


def grading_routes(verifier: Verifier) -> APIRouter:
    """/problems and /grade."""
    router = APIRouter()

    @router.get("/problems")
    async def problems() -> Response:  # pyright: ignore[reportUnusedFunction]
        """A few problems that the model was not trained on, but for whose kind it was."""
        with _refusals():
            questions = await asyncio.to_thread(verifier.draw, OFFERED)
        return json_response({"task": verifier.config.kind if questions else None, "questions": questions})

    @router.post("/grade")
    async def grade(body: GradeRequest) -> Response:  # pyright: ignore[reportUnusedFunction]
        """Whether an answer to one of the task's problems is right."""
        with _refusals():
            verdict = await asyncio.to_thread(verifier.grade, body.question, body.answer)
        return json_response(verdict, headers=unknown_header(body.unknown))

    return router


@contextmanager
def _refusals() -> Generator[None]:
    """The task's file may be gone."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise ApiError(409, str(error), code="no_task") from error
