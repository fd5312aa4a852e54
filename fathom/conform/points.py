"""The list of points, and what a server made of each."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import httpx
import openai

from fathom.conform import answers, drawing, refusals, streams
from fathom.conform.asked import Asked, NotHeld, NotOffered

# required: must hold. offered: must hold where the server has it. optional: shown alone, as good servers differ.
Level = Literal["required", "offered", "optional"]
Result = Literal["held", "not held", "not offered"]


@dataclass(frozen=True)
class Point:
    """One thing that clients rely on."""

    number: int  # in docs/serving.md
    name: str
    level: Level
    check: Callable[[Asked], str]  # returns what was seen; raises NotHeld or NotOffered


@dataclass(frozen=True)
class Outcome:
    """What was found of a point."""

    number: int
    name: str
    level: Level
    result: Result
    seen: str

    @property
    def fails(self) -> bool:
        """Whether the server does not conform because of it."""
        if self.level == "required":
            return self.result != "held"
        return self.level == "offered" and self.result == "not held"


POINTS = (
    Point(1, "models are listed", "required", answers.models),
    Point(1, "a model by its id", "offered", answers.one_model),
    Point(2, "usage adds up", "required", answers.usage),
    Point(2, "text completions", "offered", answers.texts),
    Point(3, "streamed text is the whole text", "required", answers.same_text),
    Point(4, "role, id and end once a stream", "required", streams.one_head),
    Point(5, "usage chunk last, then [DONE]", "required", streams.order),
    Point(5, "event-stream headers", "required", streams.headers),
    Point(6, "thinking and answer never mix", "offered", streams.never_mixed),
    Point(6, "thinking under both names", "optional", answers.both_names),
    Point(7, "max_tokens cuts, finish length", "required", answers.cut_off),
    Point(7, "thinking can be turned off", "optional", answers.switched_off),
    Point(8, "thinking budget", "optional", answers.budget),
    Point(9, "reasoning_tokens", "optional", answers.reasoning_tokens),
    Point(10, "inline thinking", "optional", answers.inline),
    Point(11, "past thinking under either name", "optional", answers.history),
    Point(12, "stop strings", "required", drawing.stop),
    Point(13, "seeds repeat", "optional", drawing.seed),
    Point(14, "several choices streamed", "offered", streams.several),
    Point(15, "log-probabilities", "offered", drawing.logprobs),
    Point(16, "logit bias", "offered", drawing.bias),
    Point(18, "bad fields are refused", "required", refusals.bad_fields),
    Point(18, "refusals name the field", "optional", refusals.named_fields),
    Point(18, "broken bodies, unknown model", "required", refusals.broken_body),
    Point(19, "prompts too long are refused", "offered", refusals.too_long),
    Point(20, "keys", "offered", refusals.keys),
    Point(20, "no route without a key", "optional", refusals.guarded),
    Point(20, "requests have names", "optional", streams.request_id),
    Point(21, "full means 429 and Retry-After", "offered", refusals.burst),
    Point(22, "what is left alone stops", "optional", refusals.left_alone),
    Point(23, "clients that give up do no harm", "offered", refusals.given_up),
    Point(26, "tool calls", "offered", streams.tools),
    Point(27, "answers by JSON schema", "offered", answers.json_schema),
    Point(29, "characters are never cut", "required", streams.characters),
    Point(32, "nonsense never fails the server", "required", refusals.no_failures),
)


def check(point: Point, server: Asked) -> Outcome:
    """Put one point to the server."""
    result: Result = "held"
    try:
        seen = point.check(server)
    except NotOffered as found:
        result, seen = "not offered", str(found)
    except NotHeld as found:
        result, seen = "not held", str(found)
    except (openai.OpenAIError, httpx.HTTPError, LookupError, TypeError, AttributeError, ValueError) as error:
        # an answer of another form than the point reads is an answer that clients stumble over too
        result, seen = "not held", f"{type(error).__name__}: {error}"
    return Outcome(point.number, point.name, point.level, result, " ".join(seen.split()))


def check_all(server: Asked, points: Sequence[Point] = POINTS) -> list[Outcome]:
    """Put the points to the server, one after the other."""
    return [check(point, server) for point in points]


def table(outcomes: Sequence[Outcome], width: int = 120) -> str:
    """A line for each point."""
    rows = [("", "point", "level", "", "seen")]
    rows += [(str(each.number), each.name, each.level, each.result, each.seen) for each in outcomes]
    sizes = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = ["  ".join([*(cell.ljust(size) for cell, size in zip(row, sizes, strict=False)), row[4]]) for row in rows]
    return "\n".join(line[:width].rstrip() for line in lines)


def conform(
    url: str, key: str, model: str, prompt: str, max_tokens: int, burst: int, timeout_s: float
) -> tuple[list[Outcome], dict[str, Any]]:
    """What a server makes of every point, and the same as one record.

    Without `model` the first that the server lists is asked. Raises ValueError where it lists none, OSError where
    nobody answers at the URL.
    """
    server = Asked(url, key, model, prompt, max_tokens, burst, timeout_s)
    began = time.monotonic()
    try:
        server.model = model or _first_model(server)
        outcomes = check_all(server)
    finally:
        server.close()
    record = {"conform": server.base, "model": server.model, "seconds": round(time.monotonic() - began, 1)}
    record |= {"conforms": not any(each.fails for each in outcomes)}
    counts = {result: sum(each.result == result for each in outcomes) for result in ("held", "not held", "not offered")}
    return outcomes, record | counts | {"points": [asdict(each) for each in outcomes]}


def _first_model(server: Asked) -> str:
    try:
        response = server.http.get(f"{server.base}/models")
    except httpx.HTTPError as error:
        raise OSError(f"nobody answers at {server.base} ({error})") from error
    if response.status_code != 200:
        raise ValueError(f"{server.base}/models answers with {response.status_code}; give --key, or --model NAME")
    try:
        return str(response.json()["data"][0]["id"])
    except (ValueError, LookupError, TypeError) as error:
        raise ValueError(f"{server.base}/models lists no model; give --model NAME") from error
