"""Problems as people type them, and what can be said about an answer beyond right and wrong."""

import re
from collections import Counter
from collections.abc import Sequence

from fathom.config import TaskConfig
from fathom.tasks import Arithmetic, Countdown, Problem, Task
from fathom.tasks.arithmetic import work_out
from fathom.tasks.countdown import reachable
from fathom.tasks.grade import evaluate
from fathom.tasks.task import problem_key

MOST_SEARCHED = 4  # numbers up to which all outcomes are tried at once; more take seconds

_NUMBER = "[0-9]{1,12}"  # as many digits as the checker takes
_NUMBERS = rf"{_NUMBER}(?:(?: ?, ?and | ?, ?| and | ){_NUMBER})+"
_LEADS_TO = "(?: ?: ?| ?= ?| ?-> ?| to make | to get | to reach | makes? | to )"
_FORMS = (
    re.compile(rf"(?:(?:from|with|use|using|take) )?(?P<numbers>{_NUMBERS}){_LEADS_TO}(?P<target>{_NUMBER})"),
    re.compile(
        rf"(?:(?:make|get|reach|build) )?(?P<target>{_NUMBER}) (?:from|with|using|out of) (?P<numbers>{_NUMBERS})"
    ),
)


def read_problem(text: str, task: Task) -> Problem | None:
    """The problem that a line states, or None where it states none.

    Countdown is read in forms such as `8,2,4:10`, `8 2 4 = 10` and `make 10 from 8, 2 and 4`; arithmetic as `17+26*2`.
    """
    line = " ".join(text.lower().rstrip(" .!?=\t\r\n").split())
    if isinstance(task, Arithmetic):
        return _read_arithmetic(line.replace(" ", ""))
    if not isinstance(task, Countdown):
        return None
    for form in _FORMS:
        if found := form.fullmatch(line):
            return _countdown([int(digits) for digits in re.findall("[0-9]+", found["numbers"])], int(found["target"]))
    return None


def _countdown(numbers: Sequence[int], target: int) -> Problem:
    question = ",".join(map(str, numbers)) + f":{target}"
    return Problem(question, problem_key(numbers, target), tuple(numbers), target)


def _read_arithmetic(question: str) -> Problem | None:
    try:
        steps = work_out(question)
    except ValueError:
        return None
    if steps is None:
        return None
    numbers = tuple(map(int, re.findall("[0-9]+", question)))
    return Problem(question, problem_key(numbers, steps[-1].result), numbers, steps[-1].result)


def describe_range(config: TaskConfig) -> str:
    """The problems that the model was trained on."""
    return (
        f"{config.numbers} numbers from 1 to {config.max_number}, "
        f"{'targets' if config.kind == 'countdown' else 'values'} up to {config.max_target}"
    )


def warn(problem: Problem, config: TaskConfig) -> str | None:
    """One sentence where the model never saw the like of a problem, or where no answer may exist; else None."""
    lowest = 1 if config.kind == "countdown" else 0
    known = len(problem.numbers) == config.numbers and all(1 <= n <= config.max_number for n in problem.numbers)
    if not known or not lowest <= problem.target <= config.max_target:
        return f"The model never saw such numbers (it learned {describe_range(config)}), so this is a guess."
    if config.kind == "countdown" and len(problem.numbers) <= MOST_SEARCHED:
        numbers = tuple(sorted(problem.numbers))
        if problem.target not in reachable(numbers, config.operators):
            return (
                f"No whole-number steps with {' '.join(config.operators)} lead there, so there may be no right answer."
            )
    return None


def explain(task: Task, problem: Problem, answer: str | None) -> tuple[bool, str]:
    """Whether the answer is right, and why: what its expression makes, or what makes it illegal."""
    if answer is None:
        return False, "the reply does not hold one answer after its thinking"
    if not isinstance(task, Countdown):
        right = task.grade(problem, answer) == 1
        return right, f"{problem.question} = {problem.expected}" + ("" if right else f", not {answer}")
    outcome = evaluate(answer)
    if outcome is None:
        return False, f"{answer!r} is not an expression that can be computed"
    faults = [*_count_faults(problem.numbers, outcome.numbers)]
    faults += [
        f"{operator} is not among the task's operators"
        for operator in sorted(outcome.operators - set(task.config.operators))
    ]
    makes = f"{answer} = {outcome.value}"
    if outcome.value != problem.target:
        makes += f", not {problem.target}"
    return not faults and outcome.value == problem.target, "; ".join([makes, *faults])


def _count_faults(given: Sequence[int], used: Sequence[int]) -> list[str]:
    """How the numbers of an expression differ from those of its problem."""
    wanted, found = Counter(given), Counter(used)
    faults: list[str] = []
    for number in dict.fromkeys([*given, *used]):
        if not wanted[number]:
            faults.append(f"{number} is not given")
        elif not found[number]:
            faults.append(f"{number} is missing")
        elif found[number] != wanted[number]:
            faults.append(f"{number} is used {_times(found[number])}, but given {_times(wanted[number])}")
    return faults


def _times(count: int) -> str:
    return {1: "once", 2: "twice"}.get(count, f"{count} times")
