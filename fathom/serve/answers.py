"""Answers of both endpoints, whole or streamed, from the same pieces."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from fathom.infer.request import Piece
from fathom.serve.desk import Desk, Visit
from fathom.serve.errors import ApiError, to_json
from fathom.serve.replies import Frame, chat_choice, chat_deltas, text_choice, usage_of
from fathom.serve.sample import Delta, Sample, joined_logprobs, legacy_logprobs, token_logprobs
from fathom.serve.trace import trace_event

KEEP_ALIVE = b": keep-alive\n\n"
DONE = b"data: [DONE]\n\n"
STREAM_HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}
T = TypeVar("T")


@dataclass(frozen=True)
class Echo:
    """A prompt that is shown in front of its completion."""

    text: str
    logprobs: dict[str, Any] | None = None  # of its tokens, in the older shape


@dataclass(frozen=True)
class Order:
    """One client's request on its way back: its visit, its choices in their order, and how they are shown."""

    visit: Visit
    samples: list[Sample]  # those of the first prompt, then those of the next
    frame: Frame
    echoes: tuple["Echo", ...] = ()  # prompts in front of the texts, one for each choice
    logprobs: int | None = None  # likeliest tokens beside every token's log-probability; None shows neither

    @property
    def cached(self) -> int:
        """Tokens of the prompts that the engine found in its cache: for each prompt, when its first sample began."""
        return sum(sample.piece.cached for sample in self.samples[:: self._each] if sample.piece)

    def sort(self, pieces: list[tuple[int, Piece]]) -> dict[int, Delta]:
        """What pieces add to the choices, by their index."""
        found: dict[int, list[Piece]] = {}
        for place, piece in pieces:
            found.setdefault(place * self._each + piece.sample, []).append(piece)
        return {index: self.samples[index].add(news) for index, news in sorted(found.items())}

    @property
    def _each(self) -> int:
        """Choices of one prompt."""
        return len(self.samples) // max(len(self.visit.flights), 1)


# ---- whole ----------------------------------------------------------------------------------------------------------


async def answer(desk: Desk, http: HttpRequest, order: Order) -> dict[str, Any]:
    """The body of an answer; a client that leaves before it is there ends its request."""
    try:
        wholes = await unless_left(http, _gather(desk, order))
    finally:
        _note(http, order)
        desk.leave(order.visit)
    choices = [_whole(desk, order, index, whole) for index, whole in enumerate(wholes)]
    return order.frame.body(choices, _usage(order), _version(order))


def _note(http: HttpRequest, order: Order) -> None:
    """Leave the counts for the log."""
    finishes = {sample.finish or "cancelled" for sample in order.samples}
    drawn = sum(len(sample.tokens) for sample in order.samples)
    notes = {
        "prompt_tokens": order.visit.prompt_tokens,
        "completion_tokens": drawn,
        "finish": ",".join(sorted(finishes)),
    }
    http.state.notes.update(notes)


async def _gather(desk: Desk, order: Order) -> list[Delta]:
    wholes = [Delta() for _ in order.samples]
    while not all(sample.finish for sample in order.samples):
        for index, delta in order.sort(await desk.news(order.visit)).items():
            wholes[index] += delta
    return wholes


def _whole(desk: Desk, order: Order, index: int, whole: Delta) -> dict[str, Any]:
    sample = order.samples[index]
    if order.frame.kind == "chat":
        return chat_choice(index, sample, whole, order.frame.names, _logprobs(desk, order, index, whole))
    echo = order.echoes[index] if order.echoes else Echo("")
    logprobs = _logprobs(desk, order, index, whole)
    if echo.logprobs and logprobs:
        logprobs = joined_logprobs(echo.logprobs, logprobs)
    return text_choice(index, echo.text + whole.answer, logprobs, sample.finish, sample.stop_reason)


async def unless_left(http: HttpRequest, work: Coroutine[Any, Any, T]) -> T:
    """What `work` comes to; ClientDisconnect, with the work cancelled, where the client leaves before."""
    job, gone = asyncio.ensure_future(work), asyncio.ensure_future(_left(http))
    try:
        await asyncio.wait({job, gone}, return_when=asyncio.FIRST_COMPLETED)
        if job.done():
            return job.result()
        raise ClientDisconnect
    finally:
        job.cancel()
        gone.cancel()


async def _left(http: HttpRequest) -> None:
    """Return once the client has gone."""
    while (await http.receive())["type"] != "http.disconnect":
        pass


# ---- streamed -------------------------------------------------------------------------------------------------------


class Stream(StreamingResponse):
    """A stream of events. Its requests end with it, even where the client left before it began."""

    def __init__(self, desk: Desk, http: HttpRequest, order: Order, usage: bool, counts: bool = False) -> None:
        super().__init__(_events(desk, order, usage, counts), headers=STREAM_HEADERS, media_type="text/event-stream")
        self._desk, self._http, self._order = desk, http, order

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            _note(self._http, self._order)
            self._desk.leave(self._order.visit)


async def _events(desk: Desk, order: Order, usage: bool, counts: bool) -> AsyncIterator[bytes]:
    """Server-sent events: chunks of every choice, comments in silence, the usage, `[DONE]`.

    With `counts` every chunk says how many tokens there are so far.
    """
    pause_s = 1 / desk.options.events_per_s
    yield b"".join(_event(desk, order, choices) for choices in [*_openings(order), *_endings(order)])
    try:
        while not all(sample.finish for sample in order.samples):
            pieces = await desk.news(order.visit, desk.options.keep_alive_s)
            chunks = [
                event
                for index, delta in order.sort(pieces).items()
                for event in _news(desk, order, index, delta, counts)
            ]
            if chunks or not pieces:
                yield b"".join(chunks) or KEEP_ALIVE
            await order.visit.box.pause(pause_s)
        if usage:
            yield _event(desk, order, [], {"usage": _usage(order)})
    except ApiError as error:
        yield b"data: " + to_json(error.body) + b"\n\n"
    yield DONE


def _news(desk: Desk, order: Order, index: int, delta: Delta, counts: bool) -> list[bytes]:
    """The events that say what came for one choice."""
    more = {"usage": _usage(order)} if counts else None
    events = [_event(desk, order, [choice], more) for choice in _choices(desk, order, index, delta)]
    if delta.traces:
        sample = order.samples[index]
        trace = trace_event(desk.speaker.model, index, delta.traces, first=len(delta.traces) == len(sample.tokens))
        events.insert(0, _event(desk, order, [], (more or {}) | {"trace": trace}))
    return events


def _openings(order: Order) -> list[list[dict[str, Any]]]:
    """What every choice begins with: the role, once, or the prompt where it is echoed."""
    if order.frame.kind == "chat":
        role = {"role": "assistant", "content": ""}
        return [[_chat_part(index, role)] for index in range(len(order.samples))]
    return [[text_choice(index, echo.text, echo.logprobs, None, None)] for index, echo in enumerate(order.echoes)]


def _endings(order: Order) -> list[list[dict[str, Any]]]:
    """The ends of choices of which nothing was to be drawn."""
    return [
        [text_choice(index, "", None, sample.finish, sample.stop_reason)]
        for index, sample in enumerate(order.samples)
        if sample.finish
    ]


def _choices(desk: Desk, order: Order, index: int, delta: Delta) -> list[dict[str, Any]]:
    """The chunks' choices that say what came for one choice: text, log-probabilities, the end."""
    sample = order.samples[index]
    logprobs = _logprobs(desk, order, index, delta)
    if order.frame.kind == "text":
        if not delta.answer and not logprobs and sample.finish is None:
            return []
        return [text_choice(index, delta.answer, logprobs, sample.finish, sample.stop_reason)]
    parts = [_chat_part(index, fields) for fields in chat_deltas(delta, order.frame.names)]
    if logprobs and delta.tokens:
        parts = parts or [_chat_part(index, {"content": ""})]
        parts[0]["logprobs"] = logprobs
    if sample.finish:
        parts.append(_chat_part(index, {}) | {"finish_reason": sample.finish, "stop_reason": sample.stop_reason})
    return parts


def _chat_part(index: int, delta: dict[str, Any]) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}


def _event(desk: Desk, order: Order, choices: list[dict[str, Any]], more: dict[str, Any] | None = None) -> bytes:
    return b"data: " + to_json(order.frame.chunk(choices, _version(order)) | (more or {})) + b"\n\n"


# ---- both -----------------------------------------------------------------------------------------------------------


def _logprobs(desk: Desk, order: Order, index: int, delta: Delta) -> dict[str, Any] | None:
    if order.logprobs is None:
        return None
    tokenizer, sample = desk.speaker.tokenizer, order.samples[index]
    if order.frame.kind == "chat":
        return token_logprobs(delta, tokenizer)
    return legacy_logprobs(sample, delta, tokenizer, order.logprobs)


def _usage(order: Order) -> dict[str, Any]:
    thinks = order.frame.kind == "chat"
    return usage_of(order.visit.prompt_tokens, order.cached, order.samples, thinks)


def _version(order: Order) -> int:
    """Of the weights that wrote the newest token."""
    return max((sample.piece.version for sample in order.samples if sample.piece), default=0)
