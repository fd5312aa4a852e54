r"""Questions with answers from a JSONL file, and whether an answer matches.

A line is an object with `question` (or `problem`) and `answer`, a text or a number. A multiple choice has `choices`
too, a list of texts, with the right letter as its answer; or, as GPQA is published, `Correct Answer` and
`Incorrect Answer 1` to `3`, which are shuffled in an order fixed by the question. Names are read in either case, `id`
is optional, and further fields are passed over.
"""

import json
import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from fathom.tasks.answer import canonical

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
BOX = "Reason step by step, and put the final answer in \\boxed{}."
BOX_LETTER = "Reason step by step, and put the letter of the right choice in \\boxed{}."

_LETTER = re.compile(r"\(?([A-Za-z])\)?(?:[.:)\s].*)?", re.DOTALL)


@dataclass(frozen=True)
class Question:
    """A question whose answer is known."""

    id: str
    text: str  # with the choices, where there are any
    answer: str  # in the form of `matching_form`
    choices: tuple[str, ...] = ()
    instruction: str = BOX  # what a model that was not trained on such questions is told about the form of its answer
    tests: str = ""  # JSON of what a program must do, where the answer is one: see `fathom.tasks.code`

    def matching_form(self, answer: str) -> str:
        """An answer in the form in which equal ones are equal: the letter of a choice, else a canonical text."""
        if self.choices:
            return _letter(answer, self.choices) or canonical(answer)
        return canonical(answer)


def read_questions(path: Path) -> list[Question]:
    """All questions of a file. Raises ValueError naming the line that is none: a score counts all or nothing."""
    if not path.exists():
        raise ValueError(f"there is no file {path}; name one with a question and its answer a line")
    questions: list[Question] = []
    for number, content in enumerate(path.read_bytes().splitlines(), start=1):
        if content.strip():
            try:
                questions.append(_question(number, content))
            except ValueError as error:
                raise ValueError(f"{path} line {number}: {error}") from None
    if not questions:
        raise ValueError(f"{path} holds no question; write one JSON object a line")
    return questions


def _question(number: int, content: bytes) -> Question:
    try:
        found = json.loads(content, parse_float=str)  # 0.10 stays as it is written
    except (ValueError, RecursionError) as error:
        raise ValueError(f"it is no JSON ({error})") from None
    if not isinstance(found, dict):
        raise ValueError("it is no JSON object")
    fields = {name.lower(): value for name, value in cast(dict[str, Any], found).items()}
    text = fields.get("question", fields.get("problem"))
    if not isinstance(text, str) or not text.strip():
        raise ValueError("it has no question, a text")
    choices, answer = _choices(fields, text)
    if isinstance(answer, bool) or not isinstance(answer, str | int) or not str(answer).strip():
        raise ValueError("it has no answer, a text or a number")
    listed = "".join(f"\n{letter}) {choice}" for letter, choice in zip(LETTERS, choices, strict=False))
    own = str(fields.get("id", number))
    if not choices:
        return Question(own, text, canonical(str(answer)))
    letter = _letter(str(answer), choices)
    if letter is None:
        raise ValueError(f"answer={answer!r} is none of its {len(choices)} choices; give the letter of the right one")
    return Question(own, text + listed, letter, choices, BOX_LETTER)


def _choices(fields: Mapping[str, Any], text: str) -> tuple[tuple[str, ...], object]:
    """The choices, none for an open question, and the answer."""
    given = fields.get("choices")
    if given is not None:
        texts = cast(list[object], given) if isinstance(given, list) else []
        if not 2 <= len(texts) <= len(LETTERS) or not all(isinstance(each, str) for each in texts):
            raise ValueError(f"choices is not a list of 2 to {len(LETTERS)} texts")
        return tuple(cast(list[str], texts)), fields.get("answer")
    if "correct answer" not in fields:
        return (), fields.get("answer")
    given = [fields["correct answer"], *(fields.get(f"incorrect answer {n}") for n in (1, 2, 3))]
    texts = [each for each in given if isinstance(each, str)]
    if len(texts) < 4:
        raise ValueError("it has a correct answer, but not the texts Incorrect Answer 1 to 3")
    order = random.Random(text).sample(range(4), 4)
    return tuple(texts[place] for place in order), LETTERS[order.index(0)]


def _letter(answer: str, choices: tuple[str, ...]) -> str | None:
    """The letter of the choice that an answer names or repeats; None where it does neither."""
    forms = [canonical(choice) for choice in choices]
    if forms.count(canonical(answer)) == 1:
        return LETTERS[forms.index(canonical(answer))]
    bare = re.sub(r"\\(?:text|textbf|mathrm|mathbf)\s*\{([^{}]*)\}", r"\1", answer).strip()
    found = _LETTER.fullmatch(bare)
    letter = found[1].upper() if found else ""
    return letter if letter and LETTERS.index(letter) < len(choices) else None
