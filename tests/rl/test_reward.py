import random

import pytest

from fathom.config import RewardConfig, TaskConfig
from fathom.rl.reward import language_consistency, score
from fathom.tasks import Countdown, GradingError, Problem

TASK = Countdown(TaskConfig())
PROBLEM = Problem("8,2,4:10", "0", (8, 2, 4), 10)
CONFIG = RewardConfig(accuracy=1.0, format=0.1, language=0.5)
RIGHT = "8+4=12,12-2=10</think><answer>8+4-2</answer>"


@pytest.mark.parametrize(
    ("completion", "accuracy", "form"),
    [
        (RIGHT, 1.0, 1.0),
        (RIGHT + "<|eos|>", 1.0, 1.0),
        ("8+2=10</think><answer>8+2</answer><|eos|>", 0.0, 1.0),
        ("</think><answer>8+4-2</answer><|eos|>", 1.0, 1.0),  # right without a word of thinking
        ("8+4=12,12-2=10", 0.0, 0.0),
        ("8+4-2<|eos|>", 0.0, 0.0),
        ("8+4=12</think>8+4-2<|eos|>", 0.0, 0.0),
        ("8+4=12</think></think><answer>8+4-2</answer><|eos|>", 1.0, 0.0),
        (RIGHT + "8", 1.0, 0.0),
        (RIGHT + "<answer>8+2</answer>", 0.0, 0.0),  # two answers are none
        ("", 0.0, 0.0),
    ],
)
def test_accuracy_and_format_of_a_reply(completion: str, accuracy: float, form: float) -> None:
    reward = score(TASK, PROBLEM, completion, CONFIG)
    assert (reward.accuracy, reward.format) == (accuracy, form)
    assert reward.total == pytest.approx(accuracy + 0.1 * form + 0.5 * reward.language)


def test_text_after_the_end_of_sequence_changes_nothing() -> None:
    plain = score(TASK, PROBLEM, RIGHT + "<|eos|>", CONFIG)
    assert score(TASK, PROBLEM, RIGHT + "<|eos|>好的<think><answer>1</answer>", CONFIG) == plain
    wrong = score(TASK, PROBLEM, "8+2=10<|eos|>", CONFIG)
    assert score(TASK, PROBLEM, "8+2=10<|eos|></think><answer>8+4-2</answer>", CONFIG) == wrong
    assert wrong.accuracy == 0.0


@pytest.mark.parametrize(
    ("thinking", "share"),
    [
        ("8+4=12,12-2=10", 1.0),
        ("", 1.0),
        ("so we add 8 and 4", 1.0),
        ("naïve déjà vu", 1.0),
        ("add 数 and 数", 0.5),
        ("我们先加", 0.0),
        ("a我b", 2 / 3),  # each sign is a word where no spaces part them
        ("сначала add", 0.5),
    ],
)
def test_language_consistency_is_a_share_of_words(thinking: str, share: float) -> None:
    assert language_consistency(thinking) == pytest.approx(share)


def test_language_weighs_only_as_configured() -> None:
    mixed = "add 数</think><answer>8+4-2</answer><|eos|>"
    assert score(TASK, PROBLEM, mixed, CONFIG).total == pytest.approx(1.0 + 0.1 + 0.25)
    assert score(TASK, PROBLEM, mixed, RewardConfig()).total == pytest.approx(1.1)


class BrokenTask:
    """A task whose checker never comes to a verdict."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def sample(self, rng: random.Random, held_out: bool) -> Problem:
        return PROBLEM

    def worked(self, problem: Problem, rng: random.Random) -> str:
        return RIGHT

    def soundness(self, problem: Problem, thinking: str) -> float:
        return 1.0

    def grade(self, problem: Problem, answer: str) -> bool:
        raise self.error


@pytest.mark.parametrize("error", [GradingError("the checker died"), TimeoutError("5 s")])
def test_an_undecided_answer_is_neither_right_nor_wrong(error: Exception) -> None:
    reward = score(BrokenTask(error), PROBLEM, RIGHT, CONFIG)
    assert reward.total is None
    assert reward.accuracy is None
    assert reward.failure == ("timeout" if isinstance(error, TimeoutError) else "crash")
    assert reward.format == 1.0
    missing = score(BrokenTask(error), PROBLEM, "8+4", CONFIG)  # no answer: nothing to check, so wrong
    assert missing.accuracy == 0.0


def test_a_slip_in_a_checker_is_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError):
        score(BrokenTask(ZeroDivisionError()), PROBLEM, RIGHT, CONFIG)


def test_soundness_pays_only_in_a_well_formed_reply() -> None:
    task, config = Countdown(TaskConfig(operators="+-")), RewardConfig(accuracy=1.0, format=0.1, soundness=0.2)
    problem = Problem("8,2,4:10", "", (8, 2, 4), 10)
    sound = score(task, problem, "8+4=12,12-2=10</think><answer>8+4-2</answer>", config)
    guessed = score(task, problem, "8+4=10,10-2=10</think><answer>8+4-2</answer>", config)
    broken = score(task, problem, "8+4=12,12-2=10</think>8+4-2", config)
    assert (sound.total, guessed.total, broken.total) == (pytest.approx(1.3), pytest.approx(1.1), 0.0)
    assert (sound.soundness, guessed.soundness, broken.soundness) == (1.0, 0.0, 0.0)
