"""Hostile and fuzzed answers through every verifier that ships: nothing is paid wrongly, nothing raises, nothing hangs.

500 answers by default; the slow test sends 10,000. Whether an answer is right is decided here by a second opinion that
shares no code with the verifiers.
"""

import random
import re
import time
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from functools import cache
from itertools import permutations, product
from pathlib import Path

import pytest

from fathom.config import RewardConfig, TaskConfig
from fathom.rl.reward import score
from fathom.tasks import Problem, Task, build
from fathom.tasks.attacks import BLIND, around
from fathom.tasks.sandbox import can_isolate

CONFIGS = {
    "countdown": TaskConfig(numbers=3, operators="+-*/"),
    "arithmetic": TaskConfig(kind="arithmetic", numbers=3),
    "multiplication": TaskConfig(kind="multiplication", numbers=2, max_number=99),
    "equation": TaskConfig(kind="equation", numbers=2),
    "sorting": TaskConfig(kind="sorting", numbers=4),
    "strings": TaskConfig(kind="strings", numbers=5),
    "logic": TaskConfig(kind="logic", numbers=3),
    "grid": TaskConfig(kind="grid", numbers=6),
}
LIMIT = 0.5  # seconds for one answer, on a busy machine
COUNTDOWN = Problem("8,2,4:10", "", (8, 2, 4), 10)
PAYS = RewardConfig(accuracy=1.0, format=0.0, language=0.0)


@pytest.fixture(scope="module")
def maths(tmp_path_factory: pytest.TempPathFactory) -> Task:
    file = tmp_path_factory.mktemp("tasks") / "maths.jsonl"
    file.write_text("".join(f'{{"question": "{n} and {n}?", "answer": "{2 * n}"}}\n' for n in range(3, 40)))
    return build(TaskConfig(kind="jsonl", file=str(file), held_out_share=0.0))


def posed(task: Task, seed: int) -> tuple[Problem, str]:
    """A problem and a right answer to it."""
    rng = random.Random(seed)
    problem = task.sample(rng, held_out=False)
    if problem.truth or problem.answer:
        return problem, problem.answer
    return problem, task.worked(problem, rng).partition("<answer>")[2].partition("</answer>")[0]


@cache
def values_of(numbers: tuple[Fraction, ...]) -> frozenset[tuple[Fraction, str]]:
    """Every value and way of writing it, fully bracketed, over all of the numbers."""
    if len(numbers) == 1:
        return frozenset({(numbers[0], str(numbers[0]))})
    found: set[tuple[Fraction, str]] = set()
    for cut in range(1, len(numbers)):
        for (a, left), (b, right) in product(values_of(numbers[:cut]), values_of(numbers[cut:])):
            found |= {(a + b, f"({left}+{right})"), (a - b, f"({left}-{right})"), (a * b, f"({left}*{right})")}
            if b:
                found.add((a / b, f"({left}/{right})"))
    return frozenset(found)


def is_right_countdown(problem: Problem, answer: str) -> bool:
    """By shunting yard over tokens: no syntax tree, no evaluation of Python."""
    text = answer.strip(" ")
    if len(text) > 200 or not re.fullmatch(r"[0-9+\-*/() ]*", text) or re.search(r"[0-9] +[0-9]|\*\s*\*|/\s*/", text):
        return False
    tokens = re.findall(r"[0-9]+|[-+*/()]", text)
    if Counter(int(t) for t in tokens if t.isdigit()) != Counter(problem.numbers):
        return False
    if any(t.isdigit() and len(t) > 1 and t[0] == "0" for t in tokens):
        return False
    values: list[Fraction] = []
    signs: list[str] = []
    rank = {"+": 1, "-": 1, "*": 2, "/": 2}

    def reduce() -> None:
        sign, b, a = signs.pop(), values.pop(), values.pop()
        values.append({"+": lambda: a + b, "-": lambda: a - b, "*": lambda: a * b, "/": lambda: a / b}[sign]())

    before = "("
    try:
        for token in tokens:
            if token.isdigit() or token == "(":
                if before.isdigit() or before == ")":
                    return False
                values.append(Fraction(token)) if token.isdigit() else signs.append(token)
            else:
                if not (before.isdigit() or before == ")"):
                    return False
                while signs and signs[-1] != "(" and (token == ")" or rank[signs[-1]] >= rank[token]):
                    reduce()
                if token == ")":
                    signs.pop()
                else:
                    signs.append(token)
            before = token
        while signs:
            reduce()
        return len(values) == 1 and before != "(" and values[0] == problem.target
    except (IndexError, ZeroDivisionError, KeyError):
        return False


def is_right_text(problem: Problem, answer: str) -> bool:
    """The expected text, spaces apart where the form is free of them."""
    wanted = problem.expected
    return answer.strip() in {wanted, f"x={wanted}"} or answer.replace(" ", "") in {
        wanted.replace(" ", ""),
        f"x={wanted}",
    }


def check(task: Task, problem: Problem, answer: str, right: Callable[[Problem, str], bool]) -> float:
    """What is paid, in time; a paid answer must be right in the second opinion too."""
    started = time.perf_counter()
    paid = task.grade(problem, answer)
    assert time.perf_counter() - started < LIMIT, f"{answer[:80]!r} took long"
    assert paid in (0, 1)
    assert not paid or right(problem, answer), f"{answer[:80]!r} was paid for {problem.question!r}"
    return paid


@pytest.mark.parametrize("kind", sorted(CONFIGS))
def test_no_attack_is_paid(kind: str) -> None:
    task = build(CONFIGS[kind])
    for seed in range(3):
        problem, answer = posed(task, seed)
        assert task.grade(problem, answer) == 1
        for name, attack in {**BLIND, **around(problem.question, answer)}.items():
            assert check(task, problem, attack, lambda *_: False) == 0, name


def test_no_attack_is_paid_on_mathematics(maths: Task) -> None:
    problem, answer = posed(maths, 0)
    for name, attack in {**BLIND, **around(problem.question, answer)}.items():
        assert check(maths, problem, attack, lambda *_: False) == 0, name


@pytest.mark.parametrize(
    "answer",
    [
        "8+4-2",  # the one that is right, last below
        "8+2**1*0+4-2",
        "8**1+4-2",
        "8//1+4-2",
        "8+4//2-0",
        "10",
        "8+2",  # 4 left out
        "8+4-2+0",
        "8+4-2*1",
        "8+4-2-2+2",
        "84-2",  # glued from digits
        "8.+4-2",
        ".8+4-2",
        "8+4-2.0",
        "8e0+4-2",
        "4!-8-2-4",
        "8+4-2==10",
        "8+4-2=10",
        "8+4-2,8+2",
        "8+4-2\n8+4-2",
        "(8+4-2",
        "8+4-2)",
        "-2+8+4",  # a sign uses no number, so it is an operation too many
        "+8+4-2",
        "8+4--2-4",
        "\uff18+\uff14-\uff12",
        "8+4\u22122",  # a minus sign of typography
        "8+4-2#",
        "0x8+4-2",
        "08+4-2",
        "8_+4-2",
        "0b10+8",
        "8+4-True-1",
        "nan",
        "inf",
        "8/0+4-2",
        "9**9**9",
        "(" * 90 + "8+4-2" + ")" * 90,
        "8+4-" + "0" * 190 + "2",
        "1" * 1_000_000,
        "lambda: 10",
        "__import__('os')",
    ],
)
def test_the_traps_of_countdown(answer: str) -> None:
    task = build(CONFIGS["countdown"])
    assert check(task, COUNTDOWN, answer, is_right_countdown) == (answer == "8+4-2")


def test_every_right_expression_is_paid_and_no_other() -> None:
    """Over all ways of writing the numbers of a problem, the verifier agrees with exact values found another way."""
    task = build(CONFIGS["countdown"])
    for order in set(permutations((8, 2, 4))):
        for value, text in values_of(tuple(map(Fraction, order))):
            assert (task.grade(COUNTDOWN, text) == 1) == (value == 10), text


@pytest.mark.parametrize(
    "completion",
    [
        "8+4=12</think>8+4-2",  # outside the tags
        "<answer>8+4-2</answer>",  # within the thinking that never ends
        "x</think><answer>8+4-2</answer><answer>8+4-2</answer>",  # two answers
        "x</think><answer>8+2</answer><answer>8+4-2</answer>",
        "x</think><answer></answer>8+4-2",
        "x</think><answer>8+4-2",
        "x</think>8+4-2</answer>",
        "x<|eos|></think><answer>8+4-2</answer>",  # behind the end
        "x</think><answer>8,2,4:10</answer>",  # the prompt's echo
        "x</think><answer><answer>8+4-2</answer></answer>",
        "",
        "</think>" * 5000,
        "<answer>" * 100_000,
    ],
)
def test_answers_out_of_their_place_earn_nothing(completion: str) -> None:
    started = time.perf_counter()
    assert score(build(CONFIGS["countdown"]), COUNTDOWN, completion, PAYS).total == 0.0
    assert time.perf_counter() - started < LIMIT


def fuzzed(rng: random.Random, problem: Problem, right: str) -> str:
    """A right answer mended, torn or multiplied; or signs of the alphabets that answers are made of."""
    alphabet = "0123456789+-*/().,= x\n<>{}\\_^!%knightve AB" + "\uff10\u00b2\u00bd\u2212\u00d7\u00f7\u200b\x00\u00e9"
    text = rng.choice((right, problem.question, right * 2, f"{right} {problem.question}", ""))
    for _ in range(rng.randint(0, 4)):
        at = rng.randint(0, len(text))
        match rng.randrange(4):
            case 0:
                text = text[:at] + rng.choice(alphabet) + text[at:]
            case 1:
                text = text[:at] + text[at + 1 :]
            case 2:
                text = text[:at] + rng.choice(list(BLIND.values()))[:2000] + text[at:]
            case _:
                text = text[at:] + text[:at]
    return text


def fuzz(task: Task, count: int, right: Callable[[Problem, str], bool]) -> int:
    """Send `count` answers; how many were paid."""
    rng, paid = random.Random(0), 0.0
    for seed in range(count):
        if seed % 20 == 0:
            problem, answer = posed(task, seed)
        paid += check(task, problem, fuzzed(rng, problem, answer), right)
    return int(paid)


def opinion(kind: str) -> Callable[[Problem, str], bool]:
    return is_right_countdown if kind == "countdown" else is_right_text


@pytest.mark.parametrize("kind", sorted(CONFIGS))
def test_fuzzed_answers(kind: str) -> None:
    assert fuzz(build(CONFIGS[kind]), 500, opinion(kind)) > 10  # some stay right, so the payment is tested too


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(CONFIGS))
def test_ten_thousand_fuzzed_answers(kind: str) -> None:
    assert fuzz(build(CONFIGS[kind]), 10_000, opinion(kind)) > 200


def is_right_number(problem: Problem, answer: str) -> bool:
    """The number somewhere in the text, nothing but signs of looks around it."""
    bare = re.sub(r"[\s{}\\.,%=x+]|boxed|text|[a-z]\([a-z]\)=", "", answer)
    return problem.answer in re.sub(r"0+$", "", bare) + bare and not re.search(r"[\u00b2\u00bd\uff10-\uff19]", answer)


@pytest.mark.parametrize("count", [500, pytest.param(10_000, marks=pytest.mark.slow)])
def test_fuzzed_answers_to_mathematics(maths: Task, count: int) -> None:
    assert fuzz(maths, count, is_right_number) > 10


ISOLATION = "require" if can_isolate() else "limits"
SUMS = Path(__file__).parents[2] / "recipes" / "sums.py"
SUM = "print(sum(map(int, input().split())))"


@pytest.mark.parametrize("count", [20, pytest.param(10_000, marks=pytest.mark.slow)])  # each is a process: 0.1 to 0.3 s
def test_fuzzed_answers_to_a_check_in_a_child(count: int) -> None:
    task, rng = (
        build(TaskConfig(kind="custom", file=str(SUMS), isolation=ISOLATION, check_seconds=20)),
        random.Random(0),
    )
    for seed in range(count):
        problem = task.sample(random.Random(seed // 20), held_out=False)
        answer = fuzzed(rng, problem, problem.truth)
        assert task.grade(problem, answer) == (answer.strip(" ") == problem.truth)


@pytest.mark.parametrize("count", [20, pytest.param(10_000, marks=pytest.mark.slow)])
def test_fuzzed_programs(tmp_path: Path, count: int) -> None:
    """Torn programs are wrong or still right, and what only waits is undecided; the tests' outputs decide."""
    (tmp_path / "code.jsonl").write_text(
        '{"question": "Print the sum.", '
        '"tests": [{"input": "1 2", "output": "3"}, {"input": "40 2", "output": "42"}]}\n'
    )
    config = TaskConfig(kind="code", file=str(tmp_path / "code.jsonl"), held_out_share=0.0, isolation=ISOLATION)
    task, rng, paid, undecided = build(config), random.Random(0), 0.0, 0
    problem = task.sample(rng, held_out=False)
    for _ in range(count):
        program = fuzzed(rng, problem, SUM)
        try:
            paid += (verdict := task.grade(problem, program))
            assert not verdict or "sum" in program
        except TimeoutError:
            undecided += 1
    assert paid > 0 and undecided <= count // 10
