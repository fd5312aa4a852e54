import random

import pytest

from fathom.config import TaskConfig
from fathom.tasks import Arithmetic, Countdown, build, distinct_problems
from fathom.tasks.task import is_held_out, problem_key


def test_key_knows_numbers_and_target_and_nothing_else() -> None:
    assert problem_key((8, 2, 4), 10) == problem_key((4, 8, 2), 10)
    assert len({problem_key((8, 2, 4), 10), problem_key((8, 2, 4), 11), problem_key((8, 2, 5), 10)}) == 3
    assert problem_key((1, 23), 4) != problem_key((12, 3), 4)
    # printf '2,4,8:10' | sha256sum: a split must never move from one version to the next
    assert problem_key((8, 2, 4), 10) == "079f04bf6e1c779ddd1607950d089397feedb2269ab203c7af4d834bc77dd5f6"


def test_held_out_is_a_share_of_the_keys() -> None:
    keys = [problem_key((n,), n) for n in range(4000)]
    held_out = sum(is_held_out(key, 0.125) for key in keys)
    assert abs(held_out / 4000 - 0.125) < 0.02
    assert not any(is_held_out(key, 0.0) for key in keys)
    assert all(is_held_out(key, 1.0) for key in keys)
    assert all(is_held_out(key, 0.3) for key in keys if is_held_out(key, 0.125))


def test_build_follows_the_kind() -> None:
    assert isinstance(build(TaskConfig(kind="countdown")), Countdown)
    assert isinstance(build(TaskConfig(kind="arithmetic")), Arithmetic)


@pytest.mark.parametrize("kind", ["countdown", "arithmetic"])
def test_splits_share_no_key(kind: str) -> None:
    task, rng = build(TaskConfig(kind=kind)), random.Random(0)
    train = {task.sample(rng, held_out=False).key for _ in range(3000)}
    test = {task.sample(rng, held_out=True).key for _ in range(1000)}
    assert train
    assert test
    assert not train & test


def test_both_tasks_agree_on_what_is_held_out() -> None:
    """Sums in a training text can never be the solution of a held-out Countdown problem."""
    rng = random.Random(1)
    problem = build(TaskConfig(kind="arithmetic")).sample(rng, held_out=True)
    assert is_held_out(problem_key(problem.numbers, problem.target), 0.125)
    assert problem.key == problem_key(problem.numbers, problem.target)


def test_sampling_follows_the_seed() -> None:
    task = build(TaskConfig())
    draws = [[task.sample(random.Random(seed), held_out=False) for _ in range(3)] for seed in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]


def test_distinct_problems_are_distinct_held_out_and_repeatable() -> None:
    task = build(TaskConfig())
    problems = distinct_problems(task, 500, seed=3)
    assert len({problem.key for problem in problems}) == 500
    assert all(is_held_out(problem.key, 0.125) for problem in problems)
    assert problems == distinct_problems(task, 500, seed=3)
    assert problems[:50] == distinct_problems(task, 50, seed=3)
    assert problems != distinct_problems(task, 500, seed=4)
    assert len(distinct_problems(task, 690, seed=3)) == 690  # of 696: the last few take patience


def test_asking_for_more_than_exist_says_how_many_there_are() -> None:
    task = Countdown(TaskConfig(numbers=2, max_number=4, max_target=8))
    held_out = task.count_problems().held_out
    assert held_out > 0
    assert len(distinct_problems(task, held_out, seed=0)) == held_out
    with pytest.raises(ValueError, match=f"only {held_out} were found"):
        distinct_problems(task, held_out + 1, seed=0)


def test_an_empty_split_is_said_to_be_empty() -> None:
    with pytest.raises(ValueError, match="no held-out problem"):
        build(TaskConfig(held_out_share=0.0)).sample(random.Random(0), held_out=True)
    with pytest.raises(ValueError, match="no training problem"):
        build(TaskConfig(held_out_share=1.0)).sample(random.Random(0), held_out=False)
