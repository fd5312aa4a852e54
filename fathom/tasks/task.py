"""What a task is: problems with exact answers, split by hash into training and held-out."""

import hashlib
import random
import unicodedata
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

from fathom.config import TaskConfig

MAX_DRAWS = 20_000  # fruitless draws in a row after which a split is taken for exhausted


class GradingError(RuntimeError):
    """The checker broke or ran out of time: the answer is neither right nor wrong, and is left out."""


@dataclass(frozen=True)
class Problem:
    """One question and what makes an answer to it right."""

    question: str
    key: str  # `problem_key` of the numbers and the target
    numbers: tuple[int, ...] = ()  # as the question gives them
    target: int = 0
    answer: str = ""  # the right answer as a reply would write it, where it is not an expression or the target
    truth: str = ""  # JSON of what a check in a child process must know
    reasoning: str = ""  # a worked solution, where the problem came with one
    bare: str = ""  # the question without the words that `task.prompt` puts around it; empty where there are none

    @property
    def expected(self) -> str:
        """The right answer in words for people."""
        return self.answer or str(self.target)


@runtime_checkable
class Task(Protocol):
    """Draws problems, solves them aloud, and checks answers exactly."""

    def sample(self, rng: random.Random, held_out: bool) -> Problem:
        """Draw from the held-out or from the training split; the two share no key."""
        ...

    def worked(self, problem: Problem, rng: random.Random) -> str:
        """A correct reply up to, not including, the end of sequence: thinking, then the answer."""
        ...

    def soundness(self, problem: Problem, thinking: str) -> float:
        """Share of the thinking's tries that keep the rules and whose arithmetic is true; 0 without any."""
        ...

    def grade(self, problem: Problem, answer: str) -> float:
        """1 where `answer` is right, 0 where it is wrong; a task of your own may give shares in between.

        May raise GradingError or TimeoutError, never on hostile text alone where the checker is ours.
        """
        ...


def problem_key(numbers: Sequence[int], target: int) -> str:
    """Canonical hash (64 hex digits) of a problem: its numbers in any order, and what they make.

    Neither the task nor its settings enter, so a Countdown problem held out once stays held out at
    every difficulty, and a sum over the same numbers with the same result falls on the same side.
    """
    text = ",".join(map(str, sorted(numbers))) + f":{target}"
    return hashlib.sha256(text.encode()).hexdigest()


def text_key(text: str) -> str:
    """Canonical hash (64 hex digits) of a question in words: neither spacing, case nor width of letters counts."""
    plain = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return hashlib.sha256(plain.encode()).hexdigest()


def worded(problem: Problem, prompt: str, words: str = "{question}") -> Problem:
    """The problem with its question put into `prompt`, or into the task's own `words` for the prompt "words"."""
    template = words if prompt == "words" else prompt
    if not template:
        return problem
    numbers = ", ".join(map(str, problem.numbers))
    told = template.replace("{numbers}", numbers).replace("{target}", str(problem.target))
    return replace(problem, question=told.replace("{question}", problem.question), bare=problem.question)


def require_disjoint(trained: Collection[str], asked: Iterable[str]) -> None:
    """Raise ValueError where a problem that is to be asked, by its key, belongs to those that are trained on."""
    asked = list(asked)
    known = sum(key in trained for key in asked)
    if known:
        raise ValueError(
            f"{known} of {len(asked)} problems to evaluate on are among the training problems, so a score would count "
            "what was learned by heart; leave them out, or train on others"
        )


def require_held_out(problems: Iterable[Problem], share: float) -> None:
    """Raise ValueError where a problem belongs to the training side of a run that kept `share` for evaluation."""
    asked = [problem.key for problem in problems]
    require_disjoint({key for key in asked if not is_held_out(key, share)}, asked)


def is_held_out(key: str, share: float) -> bool:
    """Whether a key belongs to the `share` of all problems kept for evaluation."""
    return int(key[:12], 16) < share * 16**12


def render_worked(thinking: str, answer: str) -> str:
    """A reply as the chat template wants it; the template itself has opened the thinking."""
    return f"{thinking}</think><answer>{answer}</answer>"


def draw_count(rng: random.Random, config: TaskConfig) -> int:
    """How many numbers a problem has; drawn, at equal odds, only where the config leaves a choice."""
    if config.fewest_numbers in (0, config.numbers):
        return config.numbers
    return rng.randint(config.fewest_numbers, config.numbers)


def draw_from_split(draw: Callable[[], Problem | None], held_out: bool, share: float) -> Problem:
    """Call `draw`, which may fail with None, until a problem of the wanted split appears."""
    for _ in range(MAX_DRAWS):
        problem = draw()
        if problem is not None and is_held_out(problem.key, share) == held_out:
            return problem
    split = "held-out" if held_out else "training"
    raise ValueError(
        f"no {split} problem appeared in {MAX_DRAWS} draws with task.held_out_share={share}; "
        "change that share, raise task.numbers or task.max_target, or allow more task.operators"
    )


def distinct_problems(task: Task, count: int, seed: int, held_out: bool = True) -> list[Problem]:
    """`count` problems of one split, no key twice; the same for the same task, seed and count.

    Raises ValueError when the split does not seem to hold so many.
    """
    rng = random.Random(seed)
    found: dict[str, Problem] = {}
    misses = 0
    while len(found) < count:
        problem = task.sample(rng, held_out)
        misses = misses + 1 if problem.key in found else 0
        found.setdefault(problem.key, problem)
        if misses == MAX_DRAWS:
            raise ValueError(
                f"{count} distinct problems were asked for, but only {len(found)} were found; ask for fewer, "
                "or raise task.max_number, task.max_target or task.held_out_share"
            )
    return list(found.values())
