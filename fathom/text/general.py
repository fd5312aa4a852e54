"""Small talk, made up: general questions whose answers no rule grades, and pairs of answers of which one is preferred.

What R1 tunes on besides reasoning (R1 2.3.3), on a laptop's scale; own dialogues and pairs are read from files.
"""

import json
import random
from pathlib import Path
from typing import NamedTuple

from fathom.tasks.task import is_held_out, render_worked, text_key
from fathom.text.dialogues import Dialogue

NAMES = (
    "Anna",
    "Brutus",
    "Cordelia",
    "Duncan",
    "Edgar",
    "Fulvia",
    "Hamlet",
    "Iris",
    "Juliet",
    "Lucio",
    "Maria",
    "Oswald",
)
THINGS = ("letter", "ring", "sword", "song", "horse", "crown", "book", "rose", "ship", "lamp", "cloak", "bread")
OPPOSITES = (
    *(("hot", "cold"), ("day", "night"), ("old", "young"), ("good", "bad"), ("high", "low"), ("love", "hate")),
    *(("life", "death"), ("war", "peace"), ("rich", "poor"), ("first", "last"), ("open", "shut"), ("sweet", "bitter")),
)


class Preference(NamedTuple):
    """A question, the better answer and the worse one."""

    question: str
    chosen: str
    rejected: str


def small_talk(rng: random.Random) -> tuple[str, str, list[str]]:
    """A question, a good answer, and worse ones: curt, beside the point, or saying all of it again and again."""
    kind, name, thing = rng.randrange(4), rng.choice(NAMES), rng.choice(THINGS)
    other = rng.choice([each for each in NAMES if each != name])
    match kind:
        case 0:
            question, good, beside = f"greet {name}", f"Good day to you, {name}.", f"Good day to you, {other}."
        case 1:
            question, good = f"thank {name} for the {thing}", f"Thank you for the {thing}, {name}."
            beside = f"Thank you for the {thing}, {other}."
        case 2:
            question, good = f"ask {name} for a {thing}", f"Would you lend me a {thing}, {name}?"
            beside = f"Would you lend me a {thing}, {other}?"
        case _:
            one, opposite = rng.choice(OPPOSITES)
            question, good = f"the opposite of {one}", f"The opposite of {one} is {opposite}."
            beside = f"The opposite of {one} is {one}."
    return question, good, [good.split()[-1], beside, " ".join([good] * 3)]


def made_up_dialogues(seed: int, count: int) -> list[Dialogue]:
    """`count` general questions with good answers, given without thinking."""
    rng = random.Random(f"general/{seed}")
    drawn = (small_talk(rng) for _ in range(count))
    return [Dialogue(question, render_worked("", good)) for question, good, _ in drawn]


def made_up_preferences(seed: int, count: int) -> list[Preference]:
    """`count` pairs."""
    rng = random.Random(f"preferences/{seed}")
    drawn = (small_talk(rng) for _ in range(count))
    return [Preference(question, good, rng.choice(worse)) for question, good, worse in drawn]


def read_dialogues(path: Path) -> list[Dialogue]:
    """Dialogues from JSONL with `prompt`, `response` and perhaps `thinking`; ValueError names a bad line."""
    lines = _read(path, ("prompt", "response"))
    return [Dialogue(line["prompt"], render_worked(line.get("thinking", ""), line["response"])) for line in lines]


def read_preferences(path: Path) -> list[Preference]:
    """Pairs from JSONL with `prompt`, `chosen` and `rejected`; ValueError names a bad line."""
    lines = _read(path, ("prompt", "chosen", "rejected"))
    return [Preference(line["prompt"], line["chosen"], line["rejected"]) for line in lines]


def balanced(pairs: list[Preference]) -> list[Preference]:
    """As many pairs whose better answer is the longer as pairs where it is the shorter (R1 2.3.4: length-balanced).

    Pairs of equal length stay; of the larger side its first are kept.
    """
    longer = [pair for pair in pairs if len(pair.chosen) > len(pair.rejected)]
    shorter = [pair for pair in pairs if len(pair.chosen) < len(pair.rejected)]
    least = min(len(longer), len(shorter))
    kept = {id(pair) for pair in [*longer[:least], *shorter[:least]]}
    return [pair for pair in pairs if len(pair.chosen) == len(pair.rejected) or id(pair) in kept]


def split_preferences(pairs: list[Preference], held_out_share: float) -> tuple[list[Preference], list[Preference]]:
    """Pairs to train on and pairs to be judged by, parted by the hash of their question."""
    held = [is_held_out(text_key(pair.question), held_out_share) for pair in pairs]
    trained = [pair for pair, out in zip(pairs, held, strict=True) if not out]
    return trained, [pair for pair, out in zip(pairs, held, strict=True) if out]


def _read(path: Path, fields: tuple[str, ...]) -> list[dict[str, str]]:
    found: list[dict[str, str]] = []
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not text.strip():
            continue
        try:
            line = json.loads(text)
        except ValueError as error:
            raise ValueError(f"{path} line {number} is no JSON ({error}); write one object a line") from error
        missing = [name for name in fields if not isinstance(line, dict) or not isinstance(line.get(name), str)]
        if missing:
            raise ValueError(f"{path} line {number} has no text {missing[0]}; it needs {', '.join(fields)}")
        found.append(line)
    if not found:
        raise ValueError(f"{path} is empty; it needs lines with {', '.join(fields)}")
    return found
