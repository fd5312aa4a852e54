"""A load on an OpenAI-compatible server: when requests start, and what each was answered. Imports no torch."""

import asyncio
import itertools
import json
import multiprocessing
import random
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import httpx

from fathom.bench.load_options import LoadOptions

Fields = dict[str, Any]
READY_S = 0.2  # between the last process that is ready and the first request
THINKING = ("reasoning_content", "reasoning")


@dataclass
class Answered:
    """One request: seconds on the machine's monotonic clock."""

    due: float  # when it should have started: at its arrival, or when its client was free
    began: float = 0.0
    first: float | None = None  # token
    ended: float = 0.0
    gaps: list[float] = field(default_factory=list[float])  # between two events with text
    prompt_tokens: int = 0
    tokens: int = 0
    error: str = ""  # its kind; none where it was answered

    @property
    def token_s(self) -> float | None:
        """Mean seconds of each token behind the first."""
        if self.first is None or self.tokens < 2:
            return None
        return (self.ended - self.first) / (self.tokens - 1)


@dataclass
class Share:
    """What one process did."""

    answers: list[Answered]
    cpu_s: float
    wall_s: float


def arrivals(rate: float, requests: int, seed: int) -> list[float]:
    """Seconds from the start at which requests arrive: gaps are exponential, of mean 1 / rate."""
    dice = random.Random(seed)
    return list(itertools.accumulate(dice.expovariate(rate) for _ in range(requests)))


def run_load(base: str, options: LoadOptions, bodies: Sequence[Fields]) -> list[Share]:
    """Ask with every body once, spread over the processes."""
    count = options.processes
    if count == 1:
        return [run_share(base, options, bodies, 0, 1, time.monotonic() + READY_S)]
    context = multiprocessing.get_context("spawn")
    ends: list[Connection] = []
    for number in range(count):
        here, there = context.Pipe()
        words = (there, base, options, bodies, number, count)
        context.Process(target=_run_beside, args=words, daemon=True).start()
        there.close()
        ends.append(here)
    try:
        for end in ends:
            end.recv()  # all have imported what they need
        start = time.monotonic() + READY_S
        for end in ends:
            end.send(start)
        return [end.recv() for end in ends]
    except EOFError as error:
        raise RuntimeError("a process that put on the load ended unasked") from error


def _run_beside(
    end: Connection, base: str, options: LoadOptions, bodies: Sequence[Fields], number: int, count: int
) -> None:
    """A process's work: say that it is ready, hear when to begin, hand in what came."""
    end.send(True)
    end.send(run_share(base, options, bodies, number, count, end.recv()))


def run_share(
    base: str, options: LoadOptions, bodies: Sequence[Fields], number: int, count: int, start: float
) -> Share:
    """One process's part: every `count`-th arrival of the whole schedule, or every `count`-th client."""
    mine = list(range(number, len(bodies), count))
    if options.rate:
        schedule = arrivals(options.rate, len(bodies), options.seed)
        work = _open(base, options, [(start + schedule[place], bodies[place]) for place in mine])
    else:
        clients = len(range(number, options.clients, count))
        work = _closed(base, options, [bodies[place] for place in mine], clients, start)
    cpu, wall = time.process_time(), time.monotonic()
    answers = asyncio.run(work)
    return Share(answers, time.process_time() - cpu, time.monotonic() - wall)


async def _open(base: str, options: LoadOptions, due: Sequence[tuple[float, Fields]]) -> list[Answered]:
    """Start every request when it is due, however many are inside."""

    async def visit(http: httpx.AsyncClient, moment: float, body: Fields) -> Answered:
        await asyncio.sleep(max(0.0, moment - time.monotonic()))
        return await ask(http, moment, body, options.stream)

    async with _client(base, options) as http:
        return await asyncio.gather(*(visit(http, moment, body) for moment, body in due))


async def _closed(
    base: str, options: LoadOptions, bodies: Sequence[Fields], clients: int, start: float
) -> list[Answered]:
    """So many clients, each of whom asks again once it is answered."""
    left = iter(bodies)

    async def client(http: httpx.AsyncClient) -> list[Answered]:
        await asyncio.sleep(max(0.0, start - time.monotonic()))
        return [await ask(http, time.monotonic(), body, options.stream) for body in left]

    async with _client(base, options) as http:
        found = await asyncio.gather(*(client(http) for _ in range(clients)))
    return [answer for each in found for answer in each]


def _client(base: str, options: LoadOptions) -> httpx.AsyncClient:
    headers = {"authorization": f"Bearer {options.key}"} if options.key else {}
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    return httpx.AsyncClient(base_url=base, headers=headers, timeout=options.timeout_s, limits=limits, trust_env=False)


async def ask(http: httpx.AsyncClient, due: float, body: Fields, stream: bool) -> Answered:
    """One request, timed; what went wrong is its `error`."""
    found = Answered(due, began=time.monotonic())
    try:
        async with asyncio.timeout(http.timeout.read):  # of the whole answer, not of each of its parts
            await (_read_stream if stream else _read_whole)(http, body, found)
    except (TimeoutError, httpx.TimeoutException):
        found.error = "timeout"
    except httpx.HTTPError as error:
        found.error = type(error).__name__
    except (ValueError, LookupError, TypeError):
        found.error = "malformed"
    found.ended = found.ended or time.monotonic()
    return found


async def _read_whole(http: httpx.AsyncClient, body: Fields, found: Answered) -> None:
    response = await http.post("/chat/completions", json=body)
    found.ended = time.monotonic()
    if response.status_code != 200:
        found.error = str(response.status_code)
        return
    _count(response.json()["usage"], found)


async def _read_stream(http: httpx.AsyncClient, body: Fields, found: Answered) -> None:
    done, newest = False, 0.0
    async with http.stream("POST", "/chat/completions", json=body) as response:
        if response.status_code != 200:
            found.error = str(response.status_code)
            return
        async for data in _events(response):
            now = time.monotonic()
            if data == b"[DONE]":
                done = True
                continue
            event = json.loads(data)
            if "error" in event:
                found.error = "error event"
                return
            if event.get("usage"):
                _count(event["usage"], found)
            if any(_has_text(choice.get("delta") or {}) for choice in event["choices"]):
                if found.first is None:
                    found.first = now
                else:
                    found.gaps.append(now - newest)
                newest = found.ended = now
    if not done:
        found.error = "no [DONE]"


async def _events(response: httpx.Response) -> AsyncIterator[bytes]:
    """The data of each event; comments are left out."""
    rest = b""
    async for part in response.aiter_bytes():
        *events, rest = (rest + part).replace(b"\r\n", b"\n").split(b"\n\n")
        for event in events:
            for line in event.split(b"\n"):
                if line.startswith(b"data:"):
                    yield line[5:].strip()


def _has_text(delta: Fields) -> bool:
    return bool(delta.get("content") or any(delta.get(name) for name in THINKING) or delta.get("tool_calls"))


def _count(usage: Fields, found: Answered) -> None:
    found.prompt_tokens, found.tokens = usage["prompt_tokens"], usage["completion_tokens"]


# ---- what is asked --------------------------------------------------------------------------------------------------


def random_words(count: int, dice: random.Random) -> str:
    """So many numbers below 1,000: one or two tokens each, with the space between, in most vocabularies."""
    return " ".join(str(dice.randrange(1000)) for _ in range(count))


def random_bodies(options: LoadOptions, model: str, fixed: float, per_word: float, count: int) -> list[Fields]:
    """Requests with random prompts of the lengths asked, given the template's tokens and those of a word."""
    dice, lengths = random.Random(options.seed), itertools.cycle(options.prompt_tokens)
    words = [max(1, round((next(lengths) - fixed) / per_word)) for _ in range(count)]
    return [
        _body(options, model, place, [{"role": "user", "content": random_words(number, dice)}])
        for place, number in enumerate(words)
    ]


def file_bodies(options: LoadOptions, model: str, count: int) -> list[Fields]:
    """Requests with the prompts of a file, from its beginning again where it ends. ValueError names a bad line."""
    assert options.file is not None
    lines = [line for line in options.file.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not lines:
        raise ValueError(f"{options.file} holds no prompt; write one a line")
    prompts = list(_prompts(options.file, lines))
    found = itertools.islice(itertools.cycle(prompts), count)
    return [_body(options, model, place, messages) | more for place, (messages, more) in enumerate(found)]


def _prompts(file: Path, lines: Sequence[str]) -> Iterator[tuple[list[Fields], Fields]]:
    """The messages of each line, and the fields that it wants otherwise."""
    for number, line in enumerate(lines, 1):
        if file.suffix != ".jsonl":
            yield [{"role": "user", "content": line}], {}
            continue
        try:
            fields = json.loads(line)
            messages = fields.get("messages") or [{"role": "user", "content": fields["prompt"]}]
        except (ValueError, LookupError, AttributeError, TypeError) as error:
            raise ValueError(f"{file}, prompt {number}: give an object with prompt or messages") from error
        yield messages, {name: fields[name] for name in ("max_tokens",) if name in fields}


def _body(options: LoadOptions, model: str, place: int, messages: list[Fields]) -> Fields:
    body: Fields = {"model": model, "messages": messages, "max_tokens": options.max_tokens}
    body |= {"temperature": options.temperature, "seed": options.seed + place}
    if options.to_the_end:
        body["ignore_eos"] = True
    if options.stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    return body
