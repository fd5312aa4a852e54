"""LiveCodeBench: its published lines are read, and programs are judged by their tests."""

import base64
import json
import pickle
import zlib
from pathlib import Path
from typing import Any

import pytest

from fathom.config import TaskConfig
from fathom.eval.answers import Attempt, attempt_record, score_attempts
from fathom.eval.programs import grade_programs, program_in, read_programs
from fathom.infer.offline import Completion
from fathom.tasks.sandbox import can_isolate

CUT_OFF = TaskConfig(isolation="require" if can_isolate() else "limits")
STARTER = "class Solution:\n    def total(self, a: List[int], b: int) -> int:\n        "


def packed(tests: list[dict[str, str]]) -> str:
    """As the light edition holds private tests."""
    return base64.b64encode(zlib.compress(pickle.dumps(json.dumps(tests)))).decode()


def case(given: str, wanted: str, kind: str = "stdin") -> dict[str, str]:
    return {"input": given, "output": wanted, "testtype": kind}


def line(**changes: Any) -> dict[str, Any]:
    """A problem as it is published."""
    return {
        "question_title": "Sum",
        "question_content": "Add the two numbers.",
        "platform": "atcoder",
        "question_id": "abc_1",
        "contest_id": "abc",
        "contest_date": "2024-09-01T00:00:00",
        "starter_code": "",
        "difficulty": "easy",
        "public_test_cases": json.dumps([case("1 2\n", "3\n")]),
        "private_test_cases": packed([case("5 6\n", "11"), case("-1 1", "0 \n\n")]),
        "metadata": "{}",
    } | changes


METHOD = line(
    question_id="3000",
    starter_code=STARTER,
    public_test_cases=json.dumps([case("[1, 2]\n3", "6", "functional")]),
    private_test_cases=json.dumps([case("[]\n-1", "-1", "functional")]),
    metadata=json.dumps({"func_name": "total"}),
)


def write(path: Path, *lines: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(each) + "\n" for each in lines))
    return path


def reply(text: str) -> Completion:
    return Completion(text, [1, 2], [0.0, 0.0], "stop")


def fenced(program: str) -> Completion:
    return reply(f"<think>Let me see.\n```python\nprint('no')\n```</think>So:\n```python\n{program}\n```\nDone.")


def test_both_editions_are_read(tmp_path: Path) -> None:
    reads, completes = read_programs(write(tmp_path / "lcb.jsonl", line(), METHOD))
    assert (reads.id, reads.text) == ("abc_1", "Add the two numbers.")
    tests = json.loads(reads.tests)
    assert tests["function"] == "" and [each["input"] for each in tests["tests"]] == ["1 2\n", "5 6\n", "-1 1"]
    assert "stdin" in reads.instruction and STARTER in completes.instruction
    assert json.loads(completes.tests) == {
        "function": "total",
        "tests": [{"args": [[1, 2], 3], "result": 6}, {"args": [[], -1], "result": -1}],
    }


def test_programs_are_right_where_they_pass_all_tests(tmp_path: Path) -> None:
    reads, completes = read_programs(write(tmp_path / "lcb.jsonl", line(), METHOD))
    replies = [
        fenced("a, b = map(int, input().split())\nprint(a + b)"),
        fenced("print(3)"),  # passes the public test alone
        fenced("a, b = map(int, input().split())\nprint(a + b)"),
        reply("<think>I think and think ```python\nprint(3)\n```"),
        fenced("import os\nos.abort()"),
    ]
    tried = grade_programs(reads, replies, CUT_OFF)
    assert tried.correct == [True, False, True, False, False] and tried.undecided == 0
    assert tried.answers[3] is None and tried.answers[0] == tried.answers[2]
    body = "return sum(a) + b"
    solutions = [
        fenced(STARTER + body),  # names List without an import, as the starter code does
        fenced(STARTER + "return sum(a)"),
        fenced(f"def total(a, b):\n    {body}"),
        reply(f"<answer>def total(a, b):\n    {body}</answer>"),
    ]
    assert grade_programs(completes, solutions, CUT_OFF).correct == [True, False, True, True]


def test_scores_of_programs_have_no_votes(tmp_path: Path) -> None:
    (question,) = read_programs(write(tmp_path / "lcb.jsonl", METHOD))
    replies = [fenced(STARTER + "return sum(a) + b"), fenced(STARTER + "return 6"), reply("I do not know.")]
    attempts = [Attempt(question, replies, grade_programs(question, replies, CUT_OFF))] * 2
    record = score_attempts(attempts, (1, 3))
    assert record["accuracy"] == pytest.approx(1 / 3, abs=1e-6) and record["pass@3"] == 1
    assert record["undecided"] == 0 and record["no_answer"] == pytest.approx(1 / 3, abs=1e-6)
    assert not any(name.startswith("maj") for name in record)
    assert attempt_record(attempts[0])["correct"] == [True, False, False]


def test_the_last_block_behind_the_thinking_is_the_program() -> None:
    assert program_in(reply("```\nold\n```\n```python\nnew\n```")) == "new\n"
    assert program_in(reply("<think>```python\nx\n```</think>nothing")) is None


class Bomb:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (open, ("/dev/null",))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"question_content": " "}, "it has no question_content"),
        ({"public_test_cases": "[]", "private_test_cases": "[]"}, "its tests are of the testtypes []"),
        ({"private_test_cases": "%%%"}, "its private_test_cases cannot be read"),
        (
            {"private_test_cases": base64.b64encode(zlib.compress(pickle.dumps(Bomb()))).decode()},
            "but only a text is expected",
        ),
        ({"private_test_cases": json.dumps([case("1", "2", "functional")])}, "they must all be stdin or functional"),
        (METHOD | {"metadata": "{}"}, "its metadata has no func_name"),
    ],
)
def test_a_line_that_is_no_problem_is_refused_by_number(tmp_path: Path, changes: dict[str, Any], sentence: str) -> None:
    file = write(tmp_path / "lcb.jsonl", line(), line(**changes))
    with pytest.raises(ValueError) as error:
        read_programs(file)
    assert sentence in str(error.value) and f"{file} line 2" in str(error.value)
