"""The verifier of a server."""

from pathlib import Path
from typing import Any

import pytest

from fathom.config import TaskConfig
from fathom.runs import Run
from fathom.serve.grading import Verifier, verifier_of
from fathom.tasks import build
from fathom.tasks.posed import read_question
from fathom.tasks.task import is_held_out


@pytest.mark.parametrize(
    ("answer", "read", "score"),
    [
        ("<answer>8+4-2</answer>", "8+4-2", 1.0),
        ("<answer> (8-2)+4 </answer>", " (8-2)+4 ", 1.0),
        ("8+4-2", "8+4-2", 1.0),
        ("<think>no</think><answer>8+4-2</answer>", "8+4-2", 1.0),
        ("<answer>8+2</answer>", "8+2", 0.0),  # 4 is missing
        ("<answer>10</answer>", "10", 0.0),
        ("<answer>8+4-2", None, 0.0),  # not ended
        ("", None, 0.0),
        ("<answer>__import__('os').system('true') or 8+4-2</answer>", "__import__('os').system('true') or 8+4-2", 0.0),
    ],
)
def test_answers_to_countdown_are_graded(shared: Any, answer: str, read: str | None, score: float) -> None:
    reply = shared.http.post("/grade", json={"question": "8,2,4:10", "answer": answer})
    assert reply.json() == {"task": "countdown", "question": "8,2,4:10", "answer": read, "score": score}


def test_another_question_is_no_problem_of_the_task(shared: Any) -> None:
    verdict = shared.http.post("/grade", json={"question": "Who are you?", "answer": "8"}).json()
    assert (verdict["task"], verdict["score"]) == (None, None)
    assert shared.http.post("/grade", json={"question": "8,2,4:10"}).status_code == 400


def test_the_task_is_that_of_the_run(run: Run, tmp_path: Path) -> None:
    assert verifier_of(run.path, True).config == run.config.task
    assert verifier_of(run.path / "grpo" / "step_000001", True).config == run.config.task
    assert verifier_of(tmp_path, False).config.operators == "+-*/"


def test_problems_are_held_out_ones_of_the_task(run: Run, shared: Any, tmp_path: Path) -> None:
    offered = shared.http.get("/problems").json()
    assert offered["task"] == "countdown" and len(offered["questions"]) == 4
    for question in offered["questions"]:
        problem = read_question(question, run.config.task, build(run.config.task))
        assert problem is not None and is_held_out(problem.key, run.config.task.held_out_share)
    assert len(verifier_of(tmp_path, True).draw(3)) == 3
    assert verifier_of(tmp_path, False).draw(3) == []  # such a model has never seen the short form


def test_nothing_is_run_for_an_answer(tmp_path: Path) -> None:
    touched = tmp_path / "touched"
    file = tmp_path / "own.py"
    file.write_text(f"open({str(touched)!r}, 'w')\n", encoding="utf-8")
    verdict = Verifier(TaskConfig(kind="custom", file=str(file), isolation="limits")).grade("1+1", "2")
    assert verdict["task"] is None and not touched.exists()


def test_a_file_that_is_gone_is_named(serve: Any, tmp_path: Path) -> None:
    verifier = Verifier(TaskConfig(kind="jsonl", file=str(tmp_path / "gone.jsonl")))
    with pytest.raises((ValueError, OSError), match=r"gone\.jsonl"):
        verifier.grade("1", "1")
