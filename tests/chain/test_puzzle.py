"""Reading problems as people type them, and explaining answers."""

import pytest

from fathom.chain.puzzle import explain, read_problem, warn
from fathom.config import TaskConfig
from fathom.tasks import Arithmetic, Countdown
from fathom.tasks.task import problem_key

TASK = TaskConfig(numbers=3, max_number=20, max_target=60, operators="+-")
COUNTDOWN = Countdown(TASK)
ARITHMETIC = Arithmetic(TaskConfig(kind="arithmetic", numbers=2, operators="+-*"))


@pytest.mark.parametrize(
    "text",
    [
        "8,2,4:10",
        " 8, 2 ,4 : 10 ",
        "8 2 4 = 10",
        "8 2 4=10?",
        "8 2 4 -> 10",
        "make 10 from 8 2 4",
        "Make 10 from 8, 2 and 4.",
        "10 with 8, 2, and 4",
        "use 8, 2, 4 to make 10!",
        "from 8 2 4 make 10",
        "get 10 out of 8 2 4",
    ],
)
def test_forms_of_one_problem(text: str) -> None:
    problem = read_problem(text, COUNTDOWN)
    assert problem is not None
    assert (problem.question, problem.numbers, problem.target) == ("8,2,4:10", (8, 2, 4), 10)
    assert problem.key == problem_key((2, 4, 8), 10)


@pytest.mark.parametrize(
    "text",
    ["", "hello", "7", "8 2 4", "8,2,4", "make ten from 8 2 4", "8+2=10", "8;2;4:10", "1" * 13 + " 2:3"],
)
def test_no_problem(text: str) -> None:
    assert read_problem(text, COUNTDOWN) is None


def test_arithmetic_questions() -> None:
    problem = read_problem("17 + 26*2 = ?", ARITHMETIC)
    assert problem is not None
    assert (problem.question, problem.numbers, problem.target) == ("17+26*2", (17, 26, 2), 69)
    assert read_problem("2-5", ARITHMETIC) is None
    assert read_problem("8,2,4:10", ARITHMETIC) is None


@pytest.mark.parametrize("question", ["8,2:10", "8,2,21:10", "0,2,4:6", "8,2,4:61", "20,20,20:0", "1,2,3,4:10"])
def test_a_problem_beyond_the_training_range_is_named_so(question: str) -> None:
    problem = read_problem(question, COUNTDOWN)
    assert problem is not None
    assert "never saw such numbers (it learned 3 numbers from 1 to 20, targets up to 60)" in str(warn(problem, TASK))


def test_a_problem_without_a_solution_is_named_so() -> None:
    unsolvable, solvable = read_problem("1,1,1:50", COUNTDOWN), read_problem("2,5,4:1", COUNTDOWN)
    assert unsolvable is not None
    assert solvable is not None
    assert "there may be no right answer" in str(warn(unsolvable, TASK))
    assert warn(solvable, TASK) is None


@pytest.mark.parametrize(
    ("answer", "right", "reason"),
    [
        ("8+4-2", True, "8+4-2 = 10"),
        ("2-4+8", False, "2-4+8 = 6, not 10"),
        ("8+2", False, "8+2 = 10; 4 is missing"),
        ("8+4-2+2-2", False, "8+4-2+2-2 = 10; 2 is used 3 times, but given once"),
        ("8+2+7-7", False, "8+2+7-7 = 10; 4 is missing; 7 is not given"),
        ("8*2-4", False, "8*2-4 = 12, not 10; * is not among the task's operators"),
        ("8/4*2", False, "8/4*2 = 4, not 10; * is not among the task's operators; / is not among the task's operators"),
        ("8+", False, "'8+' is not an expression that can be computed"),
        ("8/(4-4)", False, "'8/(4-4)' is not an expression that can be computed"),
        (None, False, "the reply does not hold one answer after its thinking"),
    ],
)
def test_why_an_answer_is_right_or_wrong(answer: str | None, right: bool, reason: str) -> None:
    problem = read_problem("8,2,4:10", COUNTDOWN)
    assert problem is not None
    assert explain(COUNTDOWN, problem, answer) == (right, reason)
    assert right == (answer is not None and COUNTDOWN.grade(problem, answer))


def test_a_number_given_twice_must_be_used_twice() -> None:
    problem = read_problem("5,5,2:12", COUNTDOWN)
    assert problem is not None
    assert explain(COUNTDOWN, problem, "5+5+2") == (True, "5+5+2 = 12")
    assert explain(COUNTDOWN, problem, "5+2") == (False, "5+2 = 7, not 12; 5 is used once, but given twice")


def test_arithmetic_answers() -> None:
    problem = read_problem("17+26", ARITHMETIC)
    assert problem is not None
    assert explain(ARITHMETIC, problem, "43") == (True, "17+26 = 43")
    assert explain(ARITHMETIC, problem, "44") == (False, "17+26 = 43, not 44")
