"""Questions whose answers are programs: LiveCodeBench's file, and programs graded by their tests in a sandbox.

A line is a problem as the benchmark publishes it: `question_id`, `question_content`, `starter_code`, which is empty for
a program that reads and writes text, `metadata` with the function's name, and `public_test_cases` and
`private_test_cases`, JSON texts of objects with `input`, `output` and `testtype`. The light edition packs the private
ones: a pickled text, compressed by zlib, in base64.
"""

import base64
import io
import json
import pickle
import re
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from fathom.config import TaskConfig
from fathom.eval.questions import Question
from fathom.eval.scores import Tried
from fathom.infer.offline import Completion
from fathom.tasks.code import passes, program_of, read_tests
from fathom.tasks.lines import read_lines
from fathom.tasks.task import Problem, text_key
from fathom.text.special import THINK, THINK_END

TEST_SECONDS = 6.0  # of CPU time for one test, the benchmark's own default
# What a contestant may use without an import, `List` of the starter code first of all.
_TOOLS = ("bisect", "collections", "copy", "functools", "heapq", "itertools", "operator", "string", "typing")
_NUMBERS = ("math", "random", "statistics", "datetime")
_TEXTS = ("io", "json", "re", "sys")
PREAMBLE = (
    "".join(f"import {name}\nfrom {name} import *\n" for name in (*_TOOLS, *_NUMBERS, *_TEXTS))
    + "from builtins import *\n"
)
READS = (
    "Write a Python program that reads the input from stdin and writes the answer to stdout. Put the whole program in "
    "one fenced block: ```python"
)
COMPLETES = "Complete this Python code, and put the whole of it in one fenced block:\n```python\n{starter}\n```"

_FENCED = re.compile(r"```[^\n]*\n.*?```", re.DOTALL)


def read_programs(path: Path) -> list[Question]:
    """All problems of a file. Raises ValueError naming the line that is none: a score counts all or nothing."""
    questions: list[Question] = []
    for number, line in read_lines(path):
        try:
            questions.append(_question(number, line))
        except ValueError as error:
            raise ValueError(f"{path} line {number}: {error}") from None
    return questions


def grade_programs(question: Question, completions: Sequence[Completion], isolation: TaskConfig) -> Tried:
    """Run every program against the question's tests; equal programs once.

    `isolation` says how far the child processes are cut off. Outputs are compared as `fathom.tasks.code` does: text
    without spaces at the ends of lines, results as JSON. A check that comes to no verdict counts as wrong.
    """
    programs = [program_in(completion) for completion in completions]
    verdicts: dict[str | None, bool | None] = {None: False}
    for program in programs:
        if program not in verdicts:
            verdicts[program] = _passes(question, cast(str, program), isolation)
    found = [verdicts[program] for program in programs]
    return Tried(programs, [verdict is True for verdict in found], found.count(None))


def program_in(completion: Completion) -> str | None:
    """The last fenced block behind the thinking, else what stands between answer tags; None where there is neither."""
    _, closed, said = completion.text.rpartition(THINK_END)
    if not closed and THINK in completion.text:
        return None
    if _FENCED.search(said):
        return program_of(said)
    return completion.answer


def _passes(question: Question, program: str, isolation: TaskConfig) -> bool | None:
    tests = read_tests(json.loads(question.tests))
    calls = len(tests.inputs) if tests.function else 1  # of one process
    config = replace(isolation, check_seconds=TEST_SECONDS * calls)
    problem = Problem(question.text, text_key(question.text), truth=question.tests)
    try:
        return passes(problem, f"{PREAMBLE}\n{program}", config) == 1
    except TimeoutError:
        return None


def _question(number: int, line: dict[str, Any]) -> Question:
    text, starter = line.get("question_content"), line.get("starter_code", "")
    if not isinstance(text, str) or not text.strip():
        raise ValueError("it has no question_content, a text; give a file of LiveCodeBench's code generation")
    if not isinstance(starter, str):
        raise ValueError("its starter_code is no text")
    cases = [*_cases(line, "public_test_cases"), *_cases(line, "private_test_cases")]
    kinds = {case.get("testtype") for case in cases}
    if len(kinds) != 1 or not kinds <= {"stdin", "functional"}:
        raise ValueError(
            f"its tests are of the testtypes {sorted(map(str, kinds))}; they must all be stdin or functional"
        )
    function = _function(line) if kinds == {"functional"} else ""
    tests = [_call(case) if function else case for case in cases]
    truth = {"function": function, "tests": tests}
    read_tests(truth)
    own = str(line.get("question_id", number))
    return Question(own, text, "", instruction=_instruction(starter), tests=json.dumps(truth))


def _instruction(starter: str) -> str:
    """What is asked behind the question."""
    return COMPLETES.format(starter=starter) if starter.strip() else READS


def _cases(line: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """The objects of one field, however they are packed."""
    given = line.get(name, [])
    try:
        if isinstance(given, str) and not given.lstrip().startswith("["):
            given = _Text(io.BytesIO(zlib.decompress(base64.b64decode(given)))).load()
        found = json.loads(given) if isinstance(given, str | bytes) else given
    except (ValueError, RecursionError, EOFError, zlib.error, pickle.UnpicklingError) as error:
        raise ValueError(f"its {name} cannot be read ({error})") from None
    if not isinstance(found, list) or not all(isinstance(each, dict) for each in cast(list[object], found)):
        raise ValueError(f"its {name} are no list of objects")
    return cast(list[dict[str, Any]], found)


class _Text(pickle.Unpickler):
    """Reads a pickled text and refuses all that could run anything."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        raise ValueError(f"it names {module_name}.{global_name}, but only a text is expected")


def _function(line: dict[str, Any]) -> str:
    metadata = line.get("metadata")
    found = json.loads(metadata) if isinstance(metadata, str) else metadata
    name = cast(dict[str, Any], found).get("func_name") if isinstance(found, dict) else None
    if not isinstance(name, str) or not name:
        raise ValueError("its tests call a function, and its metadata has no func_name")
    return name


def _call(case: dict[str, Any]) -> dict[str, Any]:
    """A functional test: an argument a line, and the result, all as JSON."""
    given, wanted = case.get("input"), case.get("output")
    if not isinstance(given, str) or not isinstance(wanted, str):
        raise ValueError("a test has no input and output, both texts")
    return {"args": [json.loads(argument) for argument in given.split("\n")], "result": json.loads(wanted)}
