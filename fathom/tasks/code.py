r"""Programs with tests, from a JSONL file. The tests' right outputs never enter the process that runs the program.

A line has `question` and `tests`: `{"input": TEXT, "output": TEXT}` for a program that reads and writes text or, with
`function`, `{"args": [...], "result": VALUE}` for a function of that name, or for that method of its class Solution.
Outputs are compared without spaces at the ends of lines, results as JSON. An answer is the program itself, or in a
fenced block.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from fathom.config import TaskConfig
from fathom.tasks.given import Given
from fathom.tasks.lines import read_lines
from fathom.tasks.sandbox import Limits, python_command, run_isolated
from fathom.tasks.task import Problem, text_key

LONGEST = 20_000  # characters of a program
PROGRAM = "program.py"
PATIENCE = (
    4  # seconds on the clock for one of CPU time: on a busy machine a program's own time is up first all the same
)
_FENCED = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)```", re.DOTALL)

# Calls the function on every list of arguments; the program's own prints go elsewhere. It runs beside the program, so a
# program may forge what it says, but not know what to forge.
_CALLER = """
import importlib.util, json, os, sys
said = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
name, calls = json.load(sys.stdin)
sys.stdin = open(os.devnull)
here = os.path.dirname(os.path.abspath(__file__))
spec = importlib.util.spec_from_file_location("program", os.path.join(here, "program.py"))
program = importlib.util.module_from_spec(spec)
spec.loader.exec_module(program)
owner = program if hasattr(program, name) else program.Solution()
said.write(json.dumps([getattr(owner, name)(*arguments) for arguments in calls]))
said.flush()
os._exit(0)
"""


@dataclass(frozen=True)
class Tests:
    """What a program must do."""

    function: str  # empty for a program that reads and writes text
    inputs: Sequence[Any]  # texts, or lists of arguments
    outputs: Sequence[Any]


def code(config: TaskConfig) -> Given:
    """The task of `config.file`; an answer is right when every test passes."""
    return Given(config, read_problems(Path(config.file)), lambda problem, answer: passes(problem, answer, config))


def passes(problem: Problem, answer: str, config: TaskConfig) -> float:
    """1 where the program passes all tests. Raises TimeoutError where one did not end in time.

    A program that fails, or uses up its CPU time, memory or files, is wrong; one that only waits may have met a busy
    machine, so nobody knows.
    """
    source, tests = program_of(answer), read_tests(json.loads(problem.truth))
    if not source.strip() or len(source) > LONGEST:
        return 0.0
    if tests.function:
        said = _run(
            "call.py", {"call.py": _CALLER, PROGRAM: source}, json.dumps([tests.function, tests.inputs]), config
        )
        return float(said is not None and _has_results(said, list(tests.outputs)))
    for given, wanted in zip(tests.inputs, tests.outputs, strict=True):
        said = _run(PROGRAM, {PROGRAM: source}, given, config)
        if said is None or _trimmed(said.decode(errors="replace")) != _trimmed(wanted):
            return 0.0
    return 1.0


def program_of(answer: str) -> str:
    """The last fenced block of an answer, else all of it."""
    blocks: list[str] = _FENCED.findall(answer)
    return blocks[-1] if blocks else answer


def read_problems(path: Path) -> list[Problem]:
    """All problems of a file. Raises ValueError naming the line that is none."""
    problems: list[Problem] = []
    for number, line in read_lines(path):
        question, tests = line.get("question"), {name: line.get(name) for name in ("function", "tests")}
        if not isinstance(question, str) or not question.strip():
            raise ValueError(f"{path} line {number}: it has no question, a text")
        try:
            read_tests(tests)
        except ValueError as error:
            raise ValueError(f"{path} line {number}: {error}") from None
        solution = line.get("solution")
        answer = solution if isinstance(solution, str) else ""
        problems.append(Problem(question, text_key(question), answer=answer, truth=json.dumps(tests)))
    return problems


def read_tests(line: dict[str, Any]) -> Tests:
    """The tests of a line; raises ValueError where there are none, or one lacks a part."""
    function, tests = line.get("function") or "", line.get("tests")
    if not isinstance(function, str) or (function and not function.isidentifier()):
        raise ValueError(f"function={function!r} is no name of a function")
    if not isinstance(tests, list) or not tests:
        raise ValueError("it has no tests, a list of at least one")
    given, wanted = ("args", "result") if function else ("input", "output")
    kind = list if function else str
    parts = cast(list[Any], tests)
    for test in parts:
        whole = isinstance(test, dict) and {given, wanted} <= cast(dict[str, Any], test).keys()
        if not whole or not isinstance(test[given], kind) or not (function or isinstance(test[wanted], str)):
            raise ValueError(f"a test has no {given} and {wanted}, of a {'function' if function else 'program'}")
    return Tests(function, [test[given] for test in parts], [test[wanted] for test in parts])


def _run(script: str, files: dict[str, str], stdin: str, config: TaskConfig) -> bytes | None:
    """What a program wrote; None where it failed."""
    seconds, wall = config.check_seconds, PATIENCE * config.check_seconds
    limits = Limits(wall_seconds=wall, cpu_seconds=max(1, int(seconds)), memory_bytes=1 << 29)
    ended = run_isolated(python_command(script), files, limits, config.isolation, stdin.encode(errors="replace"))
    if ended.outcome == "timeout" and not ended.cpu_spent:
        raise TimeoutError(f"the program did not end within {wall:g} s")
    return ended.output if ended.outcome == "done" else None


def _has_results(said: bytes, wanted: list[Any]) -> bool:
    """Whether a program's words are these results as JSON, however hostile they are."""
    try:
        return _plain(json.loads(said)) == _plain(wanted)
    except (ValueError, RecursionError):
        return False


def _plain(value: Any) -> Any:
    """The value with true and false as texts: Python holds them equal to 1 and 0."""
    match value:
        case bool():
            return f"bool {value}"
        case list():
            return [_plain(each) for each in cast(list[Any], value)]
        case dict():
            return {name: _plain(each) for name, each in cast(dict[str, Any], value).items()}
        case _:
            return value


def _trimmed(text: str) -> list[str]:
    """Lines without spaces at their ends, and without empty ones behind the last."""
    return [line.rstrip() for line in text.rstrip().splitlines()]
