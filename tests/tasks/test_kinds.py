"""Every kind of task that draws its problems: solved right by definition, split by hash, strict about form."""

import random
import re
from itertools import product

import pytest

from fathom.config import TaskConfig
from fathom.tasks import build
from fathom.tasks.grid import all_grids, relabelled
from fathom.tasks.logic import canonical_claims, solutions
from fathom.tasks.task import Problem, is_held_out, problem_key

CONFIGS = {
    "countdown": TaskConfig(numbers=4, fewest_numbers=3, operators="+-*/"),
    "arithmetic": TaskConfig(kind="arithmetic", numbers=4),
    "multiplication": TaskConfig(kind="multiplication", numbers=2, max_number=999),
    "equation": TaskConfig(kind="equation", numbers=2),
    "sorting": TaskConfig(kind="sorting", numbers=6, fewest_numbers=3, max_number=99),
    "strings": TaskConfig(kind="strings", numbers=7),
    "logic": TaskConfig(kind="logic", numbers=5),
    "grid": TaskConfig(kind="grid", numbers=8),
}
KINDS = sorted(CONFIGS)


def problems(kind: str, count: int, held_out: bool = False, seed: int = 0) -> list[Problem]:
    task, rng = build(CONFIGS[kind]), random.Random(seed)
    return [task.sample(rng, held_out) for _ in range(count)]


def answer_of(reply: str) -> str:
    found = re.fullmatch(r"(.*)</think><answer>([^<]+)</answer>", reply, re.DOTALL)
    assert found is not None and found[1], reply
    return found[2]


@pytest.mark.parametrize("kind", KINDS)
def test_worked_solutions_are_right_and_other_answers_wrong(kind: str) -> None:
    task, rng = build(CONFIGS[kind]), random.Random(1)
    drawn = problems(kind, 60)
    for problem, other in zip(drawn, [*drawn[1:], drawn[0]], strict=True):
        answer = answer_of(task.worked(problem, rng))
        assert task.grade(problem, answer) == 1
        assert task.grade(problem, answer + " or 7") == task.grade(problem, problem.question) == 0
        assert task.grade(problem, "") == task.grade(problem, f"the answer is {answer}") == 0
        if other.key != problem.key and answer_of(task.worked(other, rng)) != answer:
            assert task.grade(problem, answer_of(task.worked(other, rng))) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_training_and_held_out_problems_share_no_key(kind: str) -> None:
    train = {problem.key for problem in problems(kind, 400)}
    test = {problem.key for problem in problems(kind, 200, held_out=True)}
    assert len(train) > 100 and len(test) > 20
    assert not train & test
    assert not any(is_held_out(key, 0.125) for key in train) and all(is_held_out(key, 0.125) for key in test)


@pytest.mark.parametrize("kind", KINDS)
def test_problems_follow_from_their_seed(kind: str) -> None:
    assert problems(kind, 5, seed=3) == problems(kind, 5, seed=3) != problems(kind, 5, seed=4)


def test_products_are_split_into_places() -> None:
    task = build(CONFIGS["multiplication"])
    reply = task.worked(Problem("47*83", "", (47, 83), 3901, "3901"), random.Random(0))
    assert reply == "47*80=3760,47*3=141,3760+141=3901</think><answer>3901</answer>"
    assert task.worked(Problem("12*0", "", (12, 0), 0, "0"), random.Random(0)).startswith("12*0=0</think>")
    for problem in problems("multiplication", 100):
        a, b = map(int, problem.question.split("*"))
        steps = [step.split("=") for step in task.worked(problem, random.Random(0)).split("</think>")[0].split(",")]
        assert all(eval(left) == int(right) for left, right in steps)  # our own digits and signs
        assert int(steps[-1][1]) == a * b
        assert problem.key == problem_key((b, a), a * b)


def test_equations_hold_for_their_solution() -> None:
    for problem in problems("equation", 100):
        found = re.fullmatch(r"(\d+)x([+-]\d+)=(-?\d+)", problem.question)
        assert found is not None
        factor, summand, total = map(int, found.groups())
        assert factor * int(problem.answer) + summand == total
    task = build(CONFIGS["equation"])
    problem = Problem("3x+5=26", "", (3, 5, 26), 7, "7")
    assert task.worked(problem, random.Random(0)).startswith("3x=26-5,3x=21,x=21/3,x=7</think>")
    assert task.grade(problem, "x = 7") == 1 and task.grade(problem, "7.0") == task.grade(problem, "x=x=7") == 0


def test_lists_are_sorted_and_shuffled_ones_have_one_key() -> None:
    for problem in problems("sorting", 100):
        numbers = [int(entry) for entry in problem.question.removeprefix("sort ").split(",")]
        assert [int(entry) for entry in problem.answer.split(",")] == sorted(numbers) != numbers
        assert 3 <= len(numbers) <= 6
    task = build(CONFIGS["sorting"])
    assert task.grade(problem, problem.answer.replace(",", ", ")) == 1
    config = TaskConfig(kind="sorting", numbers=2, max_number=3, held_out_share=0.0)
    keys = {
        problem.question: problem.key for problem in (build(config).sample(random.Random(s), False) for s in range(99))
    }
    assert len(set(keys.values())) == len(keys) == 6


def test_words_are_turned_ordered_and_counted_in() -> None:
    orders = set[str]()
    for problem in problems("strings", 200):
        order, *rest = problem.question.split(" ")
        word = rest[-1]
        wanted = {"reverse": "".join(reversed(word)), "order": "".join(sorted(word)), "count": str(word.count(rest[0]))}
        assert problem.answer == wanted[order]
        orders.add(order)
    assert orders == {"reverse", "order", "count"}


def test_knights_and_knaves_have_one_reading_by_trying_all() -> None:
    for problem in problems("logic", 60):
        said = re.findall(r"([A-E]): (?:([A-E]) is a (knight|knave)|\1 and ([A-E]) are the same)", problem.question)
        assert len(said) == 5
        fits = []
        for honest in product((True, False), repeat=5):
            is_knight = dict(zip("ABCDE", honest, strict=True))
            true = [is_knight[a] == is_knight[d] if d else is_knight[b] == (kind == "knight") for a, b, kind, d in said]
            if all(is_knight[a] == holds for (a, *_), holds in zip(said, true, strict=True)):
                fits.append(",".join(f"{n} {'knight' if k else 'knave'}" for n, k in is_knight.items()))
        assert fits == [problem.answer]


def test_puzzles_under_other_names_have_one_key() -> None:
    claims = [(0, "knave", 1), (1, "same", 2), (2, "knight", 0)]
    renamed = [(2, "knave", 0), (0, "same", 1), (1, "knight", 2)]
    assert canonical_claims(claims) == canonical_claims(renamed) != canonical_claims([*claims[:2], (2, "knave", 0)])
    assert len(solutions(claims)) == len(solutions(renamed))
    assert relabelled((3, 0, 1, 3)) == relabelled((2, 0, 4, 2)) == (1, 0, 2, 1)


def test_grids_keep_their_givens_and_every_rule() -> None:
    assert len(set(all_grids())) == 288
    for problem in problems("grid", 40):
        given = problem.question.removeprefix("fill ").replace("/", "")
        full = problem.answer.replace("/", "")
        assert given.count(".") == 8
        assert all(a in (".", b) for a, b in zip(given, full, strict=True))
        fitting = [g for g in all_grids() if all(a in (".", str(b)) for a, b in zip(given, g, strict=True))]
        assert ["".join(map(str, g)) for g in fitting] == [full]  # one grid of all 288
        for k in range(4):
            quarter = [full[4 * (2 * (k // 2) + r) + 2 * (k % 2) + c] for r in (0, 1) for c in (0, 1)]
            assert set(full[4 * k : 4 * k + 4]) == set(full[k::4]) == set(quarter) == set("1234")
    task = build(CONFIGS["grid"])
    assert task.grade(problem, problem.answer.replace("/", "\n")) == 1


def test_a_prompt_stands_around_the_question_and_changes_no_key() -> None:
    plain = TaskConfig(kind="arithmetic", numbers=3)
    told = TaskConfig(kind="arithmetic", numbers=3, prompt="User: work out {question}\nAssistant:")
    for seed in range(20):
        bare, worded = (build(c).sample(random.Random(seed), False) for c in (plain, told))
        assert worded.question == f"User: work out {bare.question}\nAssistant:"
        assert (worded.key, worded.target) == (bare.key, bare.target)
        assert build(told).worked(worded, random.Random(0)) == build(plain).worked(bare, random.Random(0))


def test_countdown_as_tinyzero_poses_it() -> None:
    """Three or four numbers in equal shares, the prompt in words or the user's own."""
    config = TaskConfig(numbers=4, fewest_numbers=3, operators="+-*/", prompt="words")
    task, rng = build(config), random.Random(0)
    drawn = [task.sample(rng, False) for _ in range(300)]
    assert 0.4 < sum(len(problem.numbers) == 3 for problem in drawn) / 300 < 0.6
    problem = drawn[0]
    assert ", ".join(map(str, problem.numbers)) in problem.question and f"worth {problem.target}." in problem.question
    own = TaskConfig(prompt="Using the numbers [{numbers}], make {target}. <think>")
    posed = build(own).sample(rng, False)
    assert posed.question == f"Using the numbers [{', '.join(map(str, posed.numbers))}], make {posed.target}. <think>"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"kind": "sudoku"}, "task.kind='sudoku' is unknown"),
        ({"numbers": 7}, r"task.numbers=7 is outside 2\.\.6; a Countdown problem"),
        ({"kind": "logic", "numbers": 6}, r"task.numbers=6 is outside 2\.\.5; a problem of kind logic"),
        ({"fewest_numbers": 4}, r"task.fewest_numbers=4 is outside 2\.\.3"),
        ({"kind": "jsonl"}, "name it with task.file"),
        ({"kind": "custom"}, "name it with task.file"),
        ({"kind": "gym"}, "needs the name of a generator"),
        ({"prompt": "solve this"}, "does not say where the question goes"),
        ({"kind": "sorting", "prompt": "{numbers} {target}"}, "does not say where the question goes"),
        ({"check_seconds": 0.0}, "task.check_seconds=0.0 is not above zero"),
        ({"isolation": "none"}, "choose one of require, limits"),
    ],
)
def test_configs_without_meaning_are_refused(changes: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        TaskConfig(**changes)  # pyright: ignore[reportArgumentType]
