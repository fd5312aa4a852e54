import random

import pytest

from fathom.config import TaskConfig
from fathom.tasks.arithmetic import Arithmetic, work_out
from fathom.tasks.grade import evaluate
from fathom.tasks.task import Problem


@pytest.mark.parametrize(
    ("question", "steps"),
    [
        ("17+26*2", "26*2=52,17+52=69"),
        ("20-4-6", "20-4=16,16-6=10"),
        ("12/3*2+1", "12/3=4,4*2=8,8+1=9"),
        ("7+3", "7+3=10"),
        ("3-5", None),
        ("7/2*2", None),
        ("5/0", None),
    ],
)
def test_steps_follow_precedence_and_stay_whole(question: str, steps: str | None) -> None:
    worked = work_out(question)
    assert (None if worked is None else ",".join(map(str, worked))) == steps


@pytest.mark.parametrize("question", ["", "7", "2**3", "(1+2)*3", "1+x", "-1+2", "1+2\n"])
def test_other_text_is_no_question(question: str) -> None:
    with pytest.raises(ValueError, match="not of the form"):
        work_out(question)


def test_problems_are_worked_and_graded_exactly() -> None:
    config = TaskConfig(kind="arithmetic", operators="+-*/", numbers=4, max_number=30, max_target=200)
    task, rng = Arithmetic(config), random.Random(0)
    for _ in range(1000):
        problem = task.sample(rng, held_out=False)
        value = evaluate(problem.question)
        assert value is not None
        assert value.value == problem.target
        assert value.numbers == problem.numbers
        assert 0 <= problem.target <= 200
        thinking, _, answer = task.worked(problem, rng).partition("</think>")
        assert thinking.count("=") == 3
        assert answer == f"<answer>{problem.target}</answer>"
        assert task.grade(problem, str(problem.target))
        assert not task.grade(problem, str(problem.target + 1))


@pytest.mark.parametrize("answer", ["17+26*2", "069", "69.0", "6 9", "", "٦٩", "69=69", "+69"])
def test_only_the_plain_value_is_an_answer(answer: str) -> None:
    problem = Problem("17+26*2", "0", (17, 26, 2), 69)
    task = Arithmetic(TaskConfig(kind="arithmetic", operators="+-*"))
    assert task.grade(problem, " 69 ")
    assert not task.grade(problem, answer)
