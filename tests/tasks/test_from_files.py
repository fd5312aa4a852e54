"""Tasks from files: mathematics, programs with tests, a task of one's own, Countdown as TinyZero publishes it."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from fathom.config import TaskConfig
from fathom.tasks import GradingError, Problem, build
from fathom.tasks.code import program_of
from fathom.tasks.sandbox import can_isolate
from fathom.tasks.task import is_held_out, require_disjoint, require_held_out, text_key

ISOLATION = "require" if can_isolate() else "limits"
EXAMPLE = Path(__file__).parents[2] / "recipes" / "sums.py"


def write(path: Path, lines: list[dict[str, Any]]) -> str:
    path.write_text("\n".join(json.dumps(line) for line in lines) + "\n")
    return str(path)


def task_of(kind: str, file: str, **changes: Any):
    return build(TaskConfig(kind=kind, file=file, isolation=ISOLATION, held_out_share=0.0, **changes))


def first(task) -> Problem:
    return task.sample(random.Random(0), held_out=False)


MATHS = [
    {"question": "How many eggs are 3 dozen?", "answer": "A dozen is 12. 3*12=36\n#### 36"},  # GSM8K's form
    {"problem": "Half of one?", "solution": "It is $\\boxed{\\frac{1}{2}}$.", "level": "Level 1"},  # MATH's form
    {"question": "A thousand and one?", "answer": 1001},
]


def test_mathematics_in_both_published_forms(tmp_path: Path) -> None:
    problems = task_of("jsonl", write(tmp_path / "maths.jsonl", MATHS)).problems
    assert [problem.answer for problem in problems] == ["36", "\\frac{1}{2}", "1001"]
    assert problems[0].reasoning == "A dozen is 12. 3*12=36"
    task = task_of("jsonl", str(tmp_path / "maths.jsonl"))
    assert task.worked(problems[0], random.Random(0)) == "A dozen is 12. 3*12=36</think><answer>36</answer>"
    right = {0: ["36", "36.0", "\\boxed{36}", " 36 "], 1: ["1/2", "0.5", "$\\dfrac12$", "50/100"], 2: ["1,001"]}
    for place, answers in right.items():
        assert [task.grade(problems[place], answer) for answer in answers] == [1.0] * len(answers)
        for wrong in ("", "36 or 37", "nan", "3*12", "\\boxed{}", "\uff11\uff10\uff10\uff11", problems[place].question):
            assert task.grade(problems[place], wrong) == 0.0
    with pytest.raises(ValueError, match="no worked solution of 'A thousand and one"):
        task.worked(problems[2], random.Random(0))


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ('{"question": "x"}', "line 1: it has no answer"),
        ('{"answer": "1"}', "line 1: it has no question"),
        ("[1]", "line 1: it is no JSON object"),
        ("{", "line 1: it is no JSON"),
        ("", "holds no problem"),
    ],
)
def test_files_that_hold_no_problems_are_refused(tmp_path: Path, line: str, sentence: str) -> None:
    (tmp_path / "a.jsonl").write_text(line + "\n")
    with pytest.raises(ValueError, match=sentence):
        task_of("jsonl", str(tmp_path / "a.jsonl"))
    with pytest.raises(ValueError, match="there is no file"):
        task_of("jsonl", str(tmp_path / "b.jsonl"))


def test_splits_of_a_file_share_no_question(tmp_path: Path) -> None:
    lines = [{"question": f"What is {n} + 1?", "answer": n + 1} for n in range(300)]
    lines += [{"question": f"what  is {n} + 1? ", "answer": n + 1} for n in range(300)]  # the same in other spacing
    file = write(tmp_path / "sums.jsonl", lines)
    task, rng = build(TaskConfig(kind="jsonl", file=file, held_out_share=0.3)), random.Random(0)
    train = {task.sample(rng, False).question.lower().split()[2] for _ in range(900)}
    test = {task.sample(rng, True).question.lower().split()[2] for _ in range(400)}
    assert len(train) > 150 and len(test) > 60 and not train & test
    with pytest.raises(ValueError, match=r"none of the 600 problems .* is a held-out one"):
        build(TaskConfig(kind="jsonl", file=file, held_out_share=0.0)).sample(rng, True)


def test_keys_of_questions_know_no_spacing_case_or_width() -> None:
    assert text_key("What is  2+2 ?\n") == text_key("what IS \uff12+2 ?") != text_key("what is 2+3 ?")


def test_problems_that_were_trained_on_are_refused_for_evaluation() -> None:
    with pytest.raises(ValueError, match="2 of 3 problems to evaluate on are among the training problems"):
        require_disjoint({"a", "b", "c"}, ["a", "x", "c"])
    require_disjoint({"a"}, ["b"])
    problems = [build(TaskConfig()).sample(random.Random(seed), held_out=True) for seed in range(20)]
    require_held_out(problems, 0.125)
    asked = [build(TaskConfig(held_out_share=0.9)).sample(random.Random(seed), held_out=True) for seed in range(20)]
    trained = sum(not is_held_out(problem.key, 0.125) for problem in asked)
    with pytest.raises(ValueError, match=f"{trained} of 20 problems"):
        require_held_out(asked, 0.125)


PROGRAMS = [
    {
        "question": "Read numbers, print their sum.",
        "tests": [{"input": "1 2\n", "output": "3\n"}, {"input": "5", "output": "5"}],
    },
    {
        "question": "Write double(x).",
        "function": "double",
        "tests": [{"args": [2], "result": 4}, {"args": ["a"], "result": "aa"}],
    },
]


def test_programs_and_functions_against_their_tests(tmp_path: Path) -> None:
    task = task_of("code", write(tmp_path / "code.jsonl", PROGRAMS), check_seconds=5.0)
    whole, function = task.problems
    good = "print(sum(map(int, input().split())))"
    assert task.grade(whole, good) == task.grade(whole, f"Here it is:\n```python\n{good}\n```\n") == 1.0
    assert task.grade(whole, "print(3)") == task.grade(whole, "print(sum(map(int, input())))") == 0.0
    assert task.grade(function, "def double(x):\n    print('busy')\n    return 2 * x") == 1.0
    assert task.grade(function, "def double(x): return x + 2") == task.grade(function, "double = 4") == 0.0


def test_true_is_not_one(tmp_path: Path) -> None:
    line = {"question": "q", "function": "f", "tests": [{"args": [], "result": [1, {"a": 0}]}]}
    task = task_of("code", write(tmp_path / "code.jsonl", [line]))
    assert task.grade(task.problems[0], "def f(): return [True, {'a': False}]") == 0.0
    assert task.grade(task.problems[0], "def f(): return [1.0, {'a': 0}]") == 1.0


def test_the_last_fenced_block_is_the_program() -> None:
    assert program_of("```python\na\n```\ntext\n```\nb\n```") == "b\n"
    assert program_of("print(1)") == "print(1)"


@pytest.mark.parametrize(
    "program",
    [
        "import sys; sys.exit(0)",
        "import os; os._exit(0)",
        "raise SystemExit",
        "while True: pass",
        "x = [0] * 10**9\nwhile True: x = x + x",
        "import os\nwhile True: os.fork()",
        "def double(x): return type('E', (), {'__eq__': lambda s, o: True})()",
        "import sys\ndef double(x):\n    return sys._getframe(1).f_globals.get('wanted') or sys._getframe(1).f_locals",
        "import json\njson.dumps = lambda x: '[4, \"aa\", 1]'\ndef double(x): return x",
        "import os\nos.write(1, b'[1, 2]')\ndef double(x): return 0",
        "import gc\ndef double(x): return [o for o in gc.get_objects() if isinstance(o, str)][0]",
        "import glob\ndef double(x): return [open(f).read() for f in glob.glob('/*/work/*')]",
        "def double(x): return __import__('pathlib').Path('call.py').read_text()",
        "open('call.py', 'w').write('print(1)')\nopen('/tmp/out', 'w')",
        "import os\nos.write(1, b'[' * 60000)\nos._exit(0)",  # deeper than a parser goes
        "def double(x): return [x]",
        "def double(x): return float('nan')",
        "from fathom.tasks import code",
        "",
    ],
)
def test_programs_that_cheat_are_wrong_and_stop_nobody(tmp_path: Path, program: str) -> None:
    task = task_of("code", write(tmp_path / "code.jsonl", PROGRAMS), check_seconds=1.0)
    assert task.grade(task.problems[1], program) == 0.0


def test_a_program_that_only_waits_is_undecided(tmp_path: Path) -> None:
    task = task_of("code", write(tmp_path / "code.jsonl", PROGRAMS), check_seconds=0.5)
    with pytest.raises(TimeoutError, match="did not end within 2 s"):
        task.grade(task.problems[0], "import time; time.sleep(60)")


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ({"question": "q"}, "it has no tests"),
        ({"question": "q", "tests": [{"input": "1"}]}, "a test has no input and output, of a program"),
        ({"question": "q", "function": "f", "tests": [{"input": "1", "output": "1"}]}, "no args and result"),
        ({"question": "q", "function": "f()", "tests": []}, "no name of a function"),
        ({"tests": []}, "it has no question"),
    ],
)
def test_code_problems_without_their_parts_are_refused(tmp_path: Path, line: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        task_of("code", write(tmp_path / "code.jsonl", [line]))


def test_the_example_of_a_task_of_ones_own() -> None:
    task = task_of("custom", str(EXAMPLE))
    problem = first(task)
    reply = task.worked(problem, random.Random(0))
    answer = reply.partition("<answer>")[2].partition("</answer>")[0]
    a, b = map(int, problem.question.split("+"))
    assert answer == str(a + b)
    assert task.grade(problem, answer) == task.grade(problem, f" {answer} ") == 1.0
    assert task.grade(problem, problem.question) == task.grade(problem, answer + "0") == 0.0


PROMPT = "def prompt(rng): return f'{rng.randint(1, 99)}?', 5\n"


def test_shares_are_paid_and_what_is_none_is_a_failure_of_the_check(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"

    def paid(body: str) -> float:
        file.write_text(PROMPT + f"def check(answer, truth):\n    {body}\n")
        task = task_of("custom", str(file), check_seconds=2.0)
        return task.grade(first(task), "x")

    assert (paid("return 0.25"), paid("return True"), paid("return 0")) == (0.25, 1.0, 0.0)
    for body, said in {
        "return float('nan')": "returned nan",
        "return 'yes'": "returned a str",
        "return None": "returned a NoneType",
        "return 7": "returned 7",
        "return -0.5": "returned -0.5",
        "raise KeyError(3)": "KeyError: 3",
        "import os; os._exit(0)": "ended without an answer",
        "import sys; sys.exit(0)": "ended",
    }.items():
        with pytest.raises(GradingError, match=said):
            paid(body)
    with pytest.raises(TimeoutError, match=r"more than task\.check_seconds=2"):
        paid("while True: pass")
    assert paid("print('[true]'); return 0") == 0.0  # what a check prints is no verdict


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (PROMPT, "has no function check"),
        ("def check(answer, truth): return True\n", "has no function prompt"),
        ("def prompt(:\n", "cannot be loaded: SyntaxError"),
        ("1/0\n", "cannot be loaded: ZeroDivisionError"),
    ],
)
def test_files_that_are_no_task_are_refused(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(ValueError, match=sentence):
        task_of("custom", str(tmp_path / "mine.py"))
    with pytest.raises(ValueError, match="there is no file"):
        task_of("custom", str(tmp_path / "no.py"))


@pytest.mark.parametrize(("drawn", "sentence"), [("5", "return a pair"), ("('q', object())", "JSON cannot hold")])
def test_prompts_that_return_no_problem_are_refused(tmp_path: Path, drawn: str, sentence: str) -> None:
    (tmp_path / "mine.py").write_text(f"def prompt(rng): return {drawn}\ndef check(answer, truth): return True\n")
    with pytest.raises(ValueError, match=sentence):
        first(task_of("custom", str(tmp_path / "mine.py")))


def test_countdown_from_a_file_with_tinyzeros_fields(tmp_path: Path) -> None:
    file = write(tmp_path / "tz.jsonl", [{"nums": [44, 19, 35], "target": 98}, {"nums": [3, 3, 2], "target": 18}])
    config = TaskConfig(operators="+-*/", file=file, held_out_share=0.0)
    task = build(config)
    problems = {problem.question: problem for problem in (task.sample(random.Random(s), False) for s in range(20))}
    assert problems.keys() == {"44,19,35:98", "3,3,2:18"}
    assert task.grade(problems["44,19,35:98"], "44+19+35") == 1
    assert "<answer>" in task.worked(problems["3,3,2:18"], random.Random(0))
    with pytest.raises(ValueError, match="line 1: it has no nums"):
        build(TaskConfig(file=write(tmp_path / "bad.jsonl", [{"nums": [1], "target": 1}])))
