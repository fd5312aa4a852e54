"""Questions read back as problems: what each task draws is read as it was drawn."""

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest

from fathom.config import TaskConfig
from fathom.tasks import build
from fathom.tasks.posed import read_question

KINDS = ["countdown", "arithmetic", "multiplication", "equation", "sorting", "strings", "logic", "grid"]


@pytest.mark.parametrize("prompt", ["", "words", "Now, {question} (think!)"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_drawn_problem_is_read_as_it_was_drawn(kind: str, prompt: str) -> None:
    config = TaskConfig(kind=kind, numbers=2 if kind in ("multiplication", "equation") else 4, prompt=prompt)
    task = build(config)
    rng = random.Random(kind)
    for _ in range(8):
        problem = task.sample(rng, held_out=False)
        for question in (problem.question, problem.bare or problem.question):
            read = read_question(f" {question}\n", config, task)
            assert read is not None
            assert (read.key, read.target, read.answer) == (problem.key, problem.target, problem.answer)
            right = task.worked(problem, rng).partition("<answer>")[2].removesuffix("</answer>")
            assert task.grade(read, right) == 1
            assert task.grade(read, right + "1") == 0


def test_countdown_in_a_sentence_of_ones_own() -> None:
    config = TaskConfig(prompt="Make {target} of {numbers}.")
    read = read_question("Make 10 of 8, 2, 4.", config, build(config))
    assert read is not None and (read.numbers, read.target) == ((8, 2, 4), 10)
    assert read_question("Make ten of 8, 2, 4.", config, build(config)) is None


@pytest.mark.parametrize(
    ("kind", "question"),
    [
        ("countdown", "8:10"),
        ("countdown", "1,2,3,4,5,6,7:10"),
        ("countdown", "8,2,4"),
        ("countdown", "\u0668,2:10"),
        ("arithmetic", "3-8"),  # leaves the whole numbers
        ("arithmetic", "7/0"),
        ("arithmetic", "2**9**9"),
        ("equation", "0x+5=5"),
        ("equation", "2x+1=4"),
        ("logic", "A: B is a knight. B: A is a knight."),  # two readings
        ("logic", "A: E is a knave."),
        ("grid", "fill ..../..../..../...."),
        ("strings", "count aa in banana"),
        ("strings", "reverse a in banana"),
        ("sorting", "sort"),
        ("countdown", "1" * 10_000),
    ],
)
def test_other_text_is_no_problem(kind: str, question: str) -> None:
    config = TaskConfig(kind=kind, numbers=2, operators="+-*/")
    assert read_question(question, config, build(config)) is None


def test_a_problem_of_a_file_is_found_by_its_question(tmp_path: Path) -> None:
    file = tmp_path / "problems.jsonl"
    file.write_text(json.dumps({"question": "What is  one half?", "answer": "0.5"}), encoding="utf-8")
    config = TaskConfig(kind="jsonl", file=str(file))
    task = build(config)
    read = read_question("what is one half?", config, task)
    assert read is not None and task.grade(read, "1/2") == 1
    worded = replace(config, prompt="Q: {question}")
    assert read_question("Q: What is one half?", worded, build(worded)) == read
    assert read_question("What is one third?", config, task) is None
