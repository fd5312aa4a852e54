"""Which answers are kept to tune on."""

import pytest

from fathom.config.r1 import RejectConfig
from fathom.eval.suite import Answer
from fathom.rl.reject import fault, mixed, runs_in_circles, sift
from fathom.tasks import Problem
from fathom.text.dialogues import Dialogue

ONE, TWO = Problem("1,2:3", "a", (1, 2), 3), Problem("2,2:4", "b", (2, 2), 4)


def answer(problem: Problem, thinking: str, correct: bool = True, undecided: bool = False, end: str = "") -> Answer:
    return Answer(problem, False, f"{thinking}</think><answer>1+2</answer>{end}", correct, 5, undecided)


def test_the_first_different_good_ones_of_each_problem_are_kept_in_order() -> None:
    drawn = [answer(ONE, "a"), answer(TWO, "a"), answer(ONE, "a"), answer(ONE, "b"), answer(ONE, "c")]
    drawn += [answer(TWO, "x", correct=False)]
    found = sift(drawn, RejectConfig(keep=2))
    assert found.dialogues == [Dialogue(each.problem.question, each.reply) for each in (drawn[0], drawn[1], drawn[3])]
    assert found.counts == {"kept": 3, "repeated": 1, "surplus": 1, "wrong": 1}


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (answer(ONE, "so it is"), ""),
        (answer(ONE, "so it is", correct=False), "wrong"),
        (answer(ONE, "so it is", undecided=True), "undecided"),
        (answer(ONE, "so it is", end="more"), "malformed"),
        (answer(ONE, "so \u90a3\u4e48 it is"), "mixed languages"),
        (answer(ONE, "we try it once more and we fail " * 9), "circular"),
    ],
)
def test_what_is_wrong_with_an_answer(given: Answer, why: str) -> None:
    assert fault(given, RejectConfig()) == why


def test_circles_are_long_stretches_that_come_often() -> None:
    assert not runs_in_circles("no no no no no no")  # too short to be a stretch
    assert not runs_in_circles(" ".join(map(str, range(100))))
    assert runs_in_circles("a b c d e f g h " * 4)
    assert not runs_in_circles("a b c d e f g h " * 3)


def test_general_dialogues_make_up_their_share() -> None:
    own, general = [Dialogue(str(n), "r") for n in range(30)], [Dialogue("g1", "r"), Dialogue("g2", "r")]
    both = mixed(own, general, 0.25, seed=0)
    assert len(both) == 40
    assert {dialogue for dialogue in both if dialogue.question.isdigit()} == set(own)
    assert sum(dialogue == general[0] for dialogue in both) == 5
    assert mixed(own, general, 0.25, seed=0) == both != mixed(own, general, 0.25, seed=1)
    assert sorted(mixed(own, [], 0.25, 0)) == sorted(own)
