"""A question that somebody typed, read back as the problem it poses, so that an answer to it can be checked."""

import re

from fathom.config import TaskConfig
from fathom.config.task import MOST
from fathom.tasks.arithmetic import WORDS as ARITHMETIC_WORDS
from fathom.tasks.arithmetic import work_out
from fathom.tasks.countdown import WORDS as COUNTDOWN_WORDS
from fathom.tasks.countdown import stated
from fathom.tasks.given import Given
from fathom.tasks.grid import relabelled
from fathom.tasks.grid import render as render_grid
from fathom.tasks.grid import solutions as full_grids
from fathom.tasks.logic import NAMES, Claim, canonical_claims
from fathom.tasks.logic import render as render_claims
from fathom.tasks.logic import solutions as readings
from fathom.tasks.task import Problem, Task, problem_key, text_key

LONGEST = 2000  # characters of a question
_CHARGE = re.compile(r"([A-E]): (?:([A-E]) and ([A-E]) are the same|([A-E]) is a (knight|knave))")


def read_question(text: str, config: TaskConfig, task: Task) -> Problem | None:
    """The problem of `task` that a text poses, bare or in the words of `config.prompt`; None where it poses none.

    Bounds of the config such as `max_number` do not matter, those that keep the work small do. Kinds whose questions do
    not say what is right (code, custom, gym, kernels) have no reader.
    """
    text = text.strip()
    if len(text) > LONGEST:
        return None
    forms = [form for form in (text, _unwrapped(text, config)) if form]
    if isinstance(task, Given):
        keys = [text_key(form) for form in forms]
        return next((problem for problem in task.problems if problem.key in keys), None)
    return next(filter(None, (_read(form, config.kind) for form in forms)), None)


def _read(question: str, kind: str) -> Problem | None:
    match kind:
        case "countdown":
            return _countdown(question)
        case "arithmetic":
            return _arithmetic(question)
        case "multiplication":
            return _multiplication(question)
        case "equation":
            return _equation(question)
        case "sorting":
            return _sorting(question)
        case "strings":
            return _strings(question)
        case "logic":
            return _logic(question)
        case "grid":
            return _grid(question)
        case _:
            return None


def _unwrapped(text: str, config: TaskConfig) -> str | None:
    """The bare question in a text that the task's prompt surrounds; None where it does not."""
    words = {"countdown": COUNTDOWN_WORDS, "arithmetic": ARITHMETIC_WORDS}.get(config.kind, "{question}")
    template = words if config.prompt == "words" else config.prompt
    pattern = re.escape(template.replace("{operators}", " ".join(config.operators)))
    for name in ("question", "numbers", "target"):
        pattern = pattern.replace(re.escape(f"{{{name}}}"), f"(?P<{name}>.+?)")
    found = re.fullmatch(pattern, text, re.DOTALL)
    if not template or not found:
        return None
    parts = found.groupdict()
    return parts.get("question") or f"{parts['numbers']}:{parts['target']}".replace(" ", "")


def _countdown(question: str) -> Problem | None:
    if not re.fullmatch(r"[0-9]{1,9}(,[0-9]{1,9})+:[0-9]{1,9}", question):
        return None
    listed, _, target = question.partition(":")
    numbers = tuple(map(int, listed.split(",")))
    return stated(numbers, int(target)) if len(numbers) <= MOST["countdown"] else None


def _arithmetic(question: str) -> Problem | None:
    if not re.fullmatch(r"[0-9]{1,9}([+\-*/][0-9]{1,9}){1,15}", question):
        return None
    steps = work_out(question)
    numbers = tuple(map(int, re.split(r"[+\-*/]", question)))
    return Problem(question, problem_key(numbers, steps[-1].result), numbers, steps[-1].result) if steps else None


def _multiplication(question: str) -> Problem | None:
    found = re.fullmatch(r"([0-9]{1,30})\*([0-9]{1,30})", question)
    if not found:
        return None
    a, b = map(int, found.groups())
    return Problem(question, problem_key((a, b), a * b), (a, b), a * b, str(a * b))


def _equation(question: str) -> Problem | None:
    found = re.fullmatch(r"([0-9]{1,9})x([+-][0-9]{1,9})=(-?[0-9]{1,9})", question)
    if not found:
        return None
    factor, summand, total = map(int, found.groups())
    if factor == 0 or (total - summand) % factor:
        return None
    solution = (total - summand) // factor
    return Problem(question, text_key(question), (factor, summand, total), solution, str(solution))


def _sorting(question: str) -> Problem | None:
    if not re.fullmatch(r"sort [0-9]{1,9}(,[0-9]{1,9})+", question):
        return None
    answer = ",".join(map(str, sorted(map(int, question.removeprefix("sort ").split(",")))))
    return Problem(question, text_key("sort " + answer), answer=answer)


def _strings(question: str) -> Problem | None:
    found = re.fullmatch(r"(reverse|order|count) (?:([a-z]) in )?([a-z]+)", question)
    if not found or (found[1] == "count") != bool(found[2]):
        return None
    order, counted, word = found.groups()
    answers = {"reverse": word[::-1], "order": "".join(sorted(word)), "count": str(word.count(counted or " "))}
    return Problem(question, text_key(question), answer=answers[order])


def _logic(question: str) -> Problem | None:
    claims: list[Claim] = []
    for part in question.removesuffix(".").split(". "):
        found = _CHARGE.fullmatch(part)
        if not found:
            return None
        speaker, first, second, other, kind = found.groups()
        if kind is None and first != speaker:
            return None
        claims.append((NAMES.index(speaker), kind or "same", NAMES.index(other or second)))
    people = len(claims)
    in_order = [speaker for speaker, _, _ in claims] == list(range(people))
    if not in_order or any(other >= people for _, _, other in claims):
        return None
    fits = readings(claims)
    if len(fits) != 1:
        return None
    kinds = ",".join(f"{NAMES[k]} {'knight' if honest else 'knave'}" for k, honest in enumerate(fits[0]))
    return Problem(render_claims(claims), text_key(canonical_claims(claims)), answer=kinds)


def _grid(question: str) -> Problem | None:
    row = r"[.1-4]{4}"
    if not re.fullmatch(rf"fill {row}(/{row}){{3}}", question):
        return None
    cells = tuple(0 if cell == "." else int(cell) for cell in question.removeprefix("fill ").replace("/", ""))
    fits = full_grids(cells)
    if len(fits) != 1:
        return None
    key = text_key(render_grid(relabelled(cells)))
    return Problem(f"fill {render_grid(cells)}", key, answer=render_grid(fits[0]))
