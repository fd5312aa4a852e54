import random
from itertools import permutations

import pytest

from fathom.config import TaskConfig
from fathom.tasks.countdown import Countdown, count_tries, reachable, targets
from fathom.tasks.expression import apply_step
from fathom.tasks.task import Problem, is_held_out, problem_key

SETTINGS = [
    TaskConfig(operators="+-", max_failed_tries=1),
    TaskConfig(operators="+-*", max_failed_tries=3),
    TaskConfig(operators="+-*/", max_failed_tries=3),
    TaskConfig(numbers=4, operators="+-*/", max_failed_tries=2),
]


def split(reply: str) -> tuple[list[str], str]:
    thinking, _, rest = reply.partition("</think><answer>")
    answer, end, nothing = rest.partition("</answer>")
    assert end == "</answer>"
    assert nothing == ""
    return thinking.split(";"), answer


def replay(numbers: tuple[int, ...], chain: str, operators: str) -> int:
    """Follow a written try as a strict reader would; the number it leaves."""
    hand = list(numbers)
    for step in chain.split(","):
        calculation, _, result = step.partition("=")
        operator = next(sign for sign in "+-*/" if sign in calculation)
        assert operator in operators
        left, right = map(int, calculation.split(operator))
        assert left >= right
        assert apply_step(left, operator, right) == int(result)
        hand.remove(left)
        hand.remove(right)
        hand.append(int(result))
    assert len(hand) == 1
    return hand[0]


def test_reachable_equals_brute_force_over_all_orders() -> None:
    def brute(hand: tuple[int, ...]) -> set[int]:
        if len(hand) == 1:
            return {hand[0]}
        values: set[int] = set()
        for a, b, *rest in permutations(hand):
            for result in (a + b, a * b, a - b if a >= b else None, a // b if b and a % b == 0 and a >= b else None):
                if result is not None:
                    values |= brute((result, *rest))
        return values

    for numbers in [(3, 8), (2, 4, 8), (5, 5, 5), (1, 1, 7), (3, 3, 8, 8), (2, 5, 9, 13)]:
        assert reachable(numbers, "+-*/") == brute(numbers)


def test_small_sets_by_hand() -> None:
    assert reachable((2, 8), "+-*/") == {10, 6, 16, 4}
    assert reachable((2, 4, 8), "+-") == {14, 10, 6, 2}
    assert targets((2, 4, 8), "+-", 10) == (2, 6, 10)


def test_count_of_problems() -> None:
    assert Countdown(TaskConfig(max_number=12, max_target=36)).count_problems().total == 1264
    count = Countdown(TaskConfig()).count_problems()
    assert count.total == 5640
    assert 0.11 < count.held_out / count.total < 0.14


@pytest.mark.parametrize("config", SETTINGS)
def test_worked_solutions_are_legal_and_their_answers_right(config: TaskConfig) -> None:
    task, rng = Countdown(config), random.Random(5)
    failures: set[int] = set()
    for _ in range(1500):
        problem = task.sample(rng, held_out=False)
        assert problem.question == ",".join(map(str, problem.numbers)) + f":{problem.target}"
        tries, answer = split(task.worked(problem, rng))
        results = [replay(problem.numbers, chain, config.operators) for chain in tries]
        assert results[-1] == problem.target
        assert problem.target not in results[:-1]
        assert len(set(tries)) == len(tries)
        assert task.grade(problem, answer)
        failures.add(len(tries) - 1)
    assert failures == set(range(config.max_failed_tries + 1))


def test_failed_tries_never_solve_a_held_out_problem() -> None:
    task, rng = Countdown(TaskConfig(max_failed_tries=3)), random.Random(0)
    for _ in range(500):
        problem = task.sample(rng, held_out=False)
        for chain in split(task.worked(problem, rng))[0]:
            result = replay(problem.numbers, chain, "+-")
            assert not is_held_out(problem_key(problem.numbers, result), 0.125)


def test_failed_tries_are_drawn_uniformly() -> None:
    task, rng = Countdown(TaskConfig(max_failed_tries=1)), random.Random(0)
    problem = Problem("19,7,12:24", "f" * 64, (19, 7, 12), 24)
    counts = [len(split(task.worked(problem, rng))[0]) - 1 for _ in range(1000)]
    assert 0.45 < sum(counts) / 1000 < 0.55


def test_a_problem_without_a_miss_is_solved_at_once() -> None:
    task = Countdown(TaskConfig(numbers=2, operators="+", max_failed_tries=3))
    problem = Problem("3,4:7", problem_key((3, 4), 7), (3, 4), 7)
    assert task.worked(problem, random.Random(0)) == "4+3=7</think><answer>4+3</answer>"


def test_an_unsolvable_problem_is_refused() -> None:
    with pytest.raises(ValueError, match="no solution"):
        Countdown(TaskConfig()).worked(Problem("1,1,1:50", "f" * 64, (1, 1, 1), 50), random.Random(0))


def test_division_alone_may_leave_no_move() -> None:
    task = Countdown(TaskConfig(operators="/", max_failed_tries=3))
    problem = Problem("12,2,3:2", problem_key((12, 2, 3), 2), (12, 2, 3), 2)
    _, answer = split(task.worked(problem, random.Random(0)))
    assert task.grade(problem, answer)


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("8+4-2", True),
        (" 8 - (2 - 4) ", True),  # negative on the way, exact all the same
        ("8+2", False),  # a number left out
        ("8+4-2+2-2", False),  # a number used again
        ("8+2+4", False),
        ("10", False),
        ("12-2", False),  # a number that was not given
        ("8+4-2=10", False),
        ("8*(4+2)/2/2-2", False),
        ("", False),
        ("82-4", False),
    ],
)
def test_grading(answer: str, right: bool) -> None:
    task = Countdown(TaskConfig())
    assert task.grade(Problem("8,2,4:10", "0", (8, 2, 4), 10), answer) is right


def test_grading_holds_to_the_operators_of_the_task() -> None:
    problem = Problem("8,2,4:16", "0", (8, 2, 4), 16)
    assert not Countdown(TaskConfig(operators="+-")).grade(problem, "8/2*4")
    assert Countdown(TaskConfig(operators="+-*/")).grade(problem, "8/2*4")


def test_grading_is_exact_in_fractions() -> None:
    task = Countdown(TaskConfig(numbers=4, operators="+-*/"))
    assert task.grade(Problem("8,8,3,3:24", "0", (8, 8, 3, 3), 24), "8/(3-8/3)")


def test_powers_and_floor_division_pay_nothing() -> None:
    task = Countdown(TaskConfig(operators="+-*/"))
    assert not task.grade(Problem("2,3,1:8", "0", (2, 3, 1), 8), "2**3*1")
    assert not task.grade(Problem("7,2,1:3", "0", (7, 2, 1), 3), "7//2*1")


def test_random_play_hits_as_often_as_its_chains_do() -> None:
    """Only two additions make 14 of 8, 2, 4: half of the first moves add, and so does half of the second."""
    task, rng = Countdown(TaskConfig()), random.Random(0)
    problem = Problem("8,2,4:14", "0", (8, 2, 4), 14)
    rate = sum(task.random_solver(problem, 1, rng) for _ in range(8000)) / 8000
    assert abs(rate - 1 / 4) < 0.02
    twice = sum(task.random_solver(problem, 2, rng) for _ in range(8000)) / 8000
    assert abs(twice - (1 - (3 / 4) ** 2)) < 0.02
    assert not task.random_solver(problem, 0, rng)


def test_tries_are_counted_by_their_separators() -> None:
    assert count_tries("8+2=10,10-4=6;8+4=12,12-2=10") == 2
    assert count_tries("8+2=10") == 1
    assert count_tries("") == 0
    assert count_tries("8+2=10; ;;") == 1


@pytest.mark.parametrize(
    ("thinking", "share"),
    [
        ("", 0.0),
        ("8+4=12,12-2=10", 1.0),
        ("8+2=10,10-4=6;8+4=12,12-2=10", 1.0),  # a legal try that misses is sound
        ("8+2=10,10-4=6;8+4=13,13-2=11", 0.5),
        ("8*2=16,16-4=12", 0.0),  # an operator that the task does not have
        ("10=10", 0.0),
    ],
)
def test_soundness_is_the_share_of_legal_true_tries(thinking: str, share: float) -> None:
    problem = Problem("8,2,4:10", problem_key((8, 2, 4), 10), (8, 2, 4), 10)
    assert Countdown(TaskConfig(operators="+-")).soundness(problem, thinking) == share


def test_worked_thinking_is_sound() -> None:
    task, rng = Countdown(TaskConfig(operators="+-*/", max_failed_tries=2)), random.Random(0)
    for _ in range(200):
        problem = task.sample(rng, held_out=False)
        assert task.soundness(problem, task.worked(problem, rng).partition("</think>")[0]) == 1.0
