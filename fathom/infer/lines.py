"""Prompts from a file, one JSON object a line: what to ask, and with which sampling."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, cast

from fathom.config import SamplingConfig
from fathom.infer.offline import Prompt, choose, seed_of

MOST_SAMPLES = 4096  # completions of one prompt
SAMPLING = tuple(field.name for field in fields(SamplingConfig))
FIELDS = ("id", "prompt", "messages", "n", "seed", *SAMPLING)


@dataclass(frozen=True)
class Line:
    """One prompt of a file."""

    number: int  # of the line, from 1
    id: str | int  # the line's own, else its number
    prompt: Prompt
    sampling: SamplingConfig
    seed: int
    n: int

    def key(self, model: str) -> str:
        """What the completions depend on, as 16 hex digits: the prompt, how it is drawn, and the model's name."""
        depends = [self.prompt, asdict(self.sampling), self.seed, self.n, model]
        return hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()[:16]


def read_lines(path: Path, sampling: SamplingConfig, seed: int) -> Iterator[Line | tuple[int, str]]:
    """The prompts of a file; a line that holds none comes as its number and what is wrong with it.

    A line has `prompt` (a text) or `messages` (objects with `role` and `content`), and may have `id`, `n`, `seed` and
    the fields of SamplingConfig; what it leaves out is as given here. Blank lines are passed over. A line without a
    seed draws by `seed` and its id, so that its text does not depend on the other lines.
    """
    seen: dict[str, int] = {}
    with path.open("rb") as file:
        for number, content in enumerate(file, start=1):
            if not content.strip():
                continue
            try:
                line = _line(number, _object(content), sampling, seed)
                first = seen.setdefault(json.dumps(line.id), number)
                if first != number:
                    raise ValueError(f"id {line.id!r} is that of line {first} too; give every line its own")
            except ValueError as error:
                yield number, str(error)
            else:
                yield line


def _object(content: bytes) -> dict[str, Any]:
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"it is no JSON ({error}); write one object a line") from None
    if not isinstance(found, dict):
        raise ValueError("it is no JSON object; write one object a line")
    return cast(dict[str, Any], found)


def _line(number: int, given: dict[str, Any], sampling: SamplingConfig, seed: int) -> Line:
    if unknown := [name for name in given if name not in FIELDS]:
        raise ValueError(f"{unknown[0]!r} is no field; the fields are {', '.join(FIELDS)}")
    own = given.get("id", number)
    if not isinstance(own, str | int) or isinstance(own, bool):
        raise ValueError(f"id={own!r} is neither a text nor a whole number")
    return Line(
        number,
        own,
        _prompt(given),
        choose(sampling, {name: given[name] for name in SAMPLING if name in given}),
        _whole(given, "seed", seed_of(seed, json.dumps(own)), 0, 2**63 - 1),
        _whole(given, "n", 1, 1, MOST_SAMPLES),
    )


def _prompt(given: Mapping[str, Any]) -> Prompt:
    if ("prompt" in given) == ("messages" in given):
        raise ValueError("it has both prompt and messages" if "prompt" in given else "it has no prompt and no messages")
    if "prompt" in given:
        if not isinstance(given["prompt"], str):
            raise ValueError(f"prompt={given['prompt']!r} is not a text")
        return given["prompt"]
    messages = given["messages"]
    if not isinstance(messages, list) or not all(map(_is_message, cast(Sequence[object], messages))):
        raise ValueError("messages is not a list of objects that have role and content, both texts, and nothing else")
    return cast(list[dict[str, str]], messages)


def _is_message(found: object) -> bool:
    if not isinstance(found, dict):
        return False
    message = cast(dict[str, object], found)
    return set(message) == {"role", "content"} and all(isinstance(value, str) for value in message.values())


def _whole(given: Mapping[str, Any], name: str, default: int, low: int, high: int) -> int:
    value = given.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise ValueError(f"{name}={value!r} is not a whole number from {low} to {high}")
    return value
