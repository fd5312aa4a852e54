"""math-verify and reasoning-gym, where they are installed: always in a child, never paying nonsense."""

import contextlib
import random
from pathlib import Path

import pytest

from fathom.config import TaskConfig
from fathom.tasks import GradingError, build
from fathom.tasks.gym import REFUSED, Gym
from fathom.tasks.sandbox import can_isolate

ISOLATION = "require" if can_isolate() else "limits"


@pytest.mark.slow
def test_math_verify_finds_equal_what_differs_in_form(tmp_path: Path) -> None:
    pytest.importorskip("math_verify")
    (tmp_path / "a.jsonl").write_text('{"question": "q", "answer": "\\\\frac{\\\\sqrt{2}}{2}"}\n')
    config = TaskConfig(
        kind="jsonl", file=str(tmp_path / "a.jsonl"), held_out_share=0.0, isolation=ISOLATION, check_seconds=30
    )
    verifying = TaskConfig(**{**vars(config), "math_verify": True})
    for task, paid in ((build(config), 0.0), (build(verifying), 1.0)):
        problem = task.sample(random.Random(0), False)
        assert task.grade(problem, "\\frac{1}{\\sqrt{2}}") == paid
        assert task.grade(problem, "\\frac{\\sqrt{2}}{3}") == task.grade(problem, "") == 0.0


@pytest.mark.slow
def test_hostile_mathematics_is_undecided_within_its_limit_and_not_paid(tmp_path: Path) -> None:
    pytest.importorskip("math_verify")
    (tmp_path / "a.jsonl").write_text('{"question": "q", "answer": "7"}\n')
    task = build(
        TaskConfig(
            kind="jsonl",
            file=str(tmp_path / "a.jsonl"),
            held_out_share=0.0,
            isolation=ISOLATION,
            check_seconds=8,
            math_verify=True,
        )
    )
    problem = task.sample(random.Random(0), False)
    for answer in ("9^{9^{9^9}}", "9!!!!"):
        with contextlib.suppress(GradingError, TimeoutError):
            assert task.grade(problem, answer) == 0.0
    assert task.grade(problem, "9" * 600) == 0.0  # too long to be looked at


@pytest.fixture
def chain_sum() -> Gym:
    pytest.importorskip("reasoning_gym")
    task = build(TaskConfig(kind="gym", name="chain_sum", isolation=ISOLATION, check_seconds=60))
    assert isinstance(task, Gym)
    return task


@pytest.mark.slow
def test_generators_of_reasoning_gym_are_drawn_split_and_scored_in_a_child(chain_sum: Gym) -> None:
    rng = random.Random(0)
    train = {chain_sum.sample(rng, False).key for _ in range(60)}
    test = {chain_sum.sample(rng, True).key for _ in range(10)}
    assert len(train) > 55 and not train & test  # seeds far apart: no shifted copies
    problem = chain_sum.sample(rng, False)
    assert chain_sum.sample(random.Random(5), False) == chain_sum.sample(random.Random(5), False)
    assert chain_sum.grade(problem, problem.answer) == 1.0
    assert chain_sum.grade(problem, problem.answer + "0") == 0.0
    assert chain_sum.worked(problem, rng) == f"</think><answer>{problem.answer}</answer>"


@pytest.mark.slow
def test_a_scorer_that_runs_its_answer_harms_nobody(tmp_path: Path) -> None:
    pytest.importorskip("reasoning_gym")
    task = build(TaskConfig(kind="gym", name="countdown", isolation=ISOLATION, check_seconds=60))
    problem = task.sample(random.Random(0), False)
    sign = tmp_path / "sign"
    attack = f"__import__('os').system('touch {sign}')"
    with contextlib.suppress(GradingError, TimeoutError):
        assert task.grade(problem, attack) == 0.0
    assert not sign.exists() or ISOLATION == "limits"


def test_generators_that_cannot_be_trained_on_are_refused() -> None:
    for name in REFUSED:
        with pytest.raises(ValueError, match="cannot be trained on: its scorer"):
            build(TaskConfig(kind="gym", name=name))
    pytest.importorskip("reasoning_gym")
    with pytest.raises(ValueError, match="'chain_sums' is no generator"):
        build(TaskConfig(kind="gym", name="chain_sums"))
