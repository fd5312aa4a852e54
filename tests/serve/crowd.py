"""Many clients at once, in a process of their own: python tests/serve/crowd.py URL --clients 200 --seconds 60 --stream

Every question is first asked alone; then all clients ask at random for so long. Prints one JSON line: answers, those
that were lost or differ from the one that came alone (`mixed_up`; `mixed_up_questions` says to how many questions, as
one that rounding parts is asked again and again), tokens a second, and the share of a core that the clients took.
Needs nothing but Python, and an OpenAI-compatible server whose seeded answers do not depend on their neighbours.
"""

import argparse
import asyncio
import json
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

NUMBERS = [f"{a},{b},{c}:{a + b - c if a + b > c else a + b + c}" for a in range(2, 9) for b in (3, 7) for c in (4, 11)]


@dataclass
class Tally:
    """What came back."""

    counts: Counter[str] = field(default_factory=Counter[str])
    first_s: list[float] = field(default_factory=list[float])  # to the first event
    whole_s: list[float] = field(default_factory=list[float])
    mixed_up: set[int] = field(default_factory=set[int])  # questions with another answer than alone


async def post(url: str, body: dict[str, Any]) -> tuple[int, dict[str, str], bytes, float]:
    """Status, headers and body of an answer, and the seconds to its first byte behind the headers."""
    place, began = urlsplit(url), time.monotonic()
    reader, writer = await asyncio.open_connection(place.hostname, place.port, limit=1 << 24)
    content = json.dumps(body).encode()
    head = f"POST {place.path}/v1/chat/completions HTTP/1.0\r\ncontent-type: application/json\r\n"
    writer.write(f"{head}content-length: {len(content)}\r\n\r\n".encode() + content)
    try:
        lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines[1:] if line)
        first = await reader.read(1 << 16)
        seconds = time.monotonic() - began
        return int(lines[0].split()[1]), headers, first + await reader.read(), seconds
    finally:
        writer.close()


def read(raw: bytes, stream: bool) -> tuple[str, int, str]:
    """Text, tokens and finish reason of an answer; ValueError where a stream breaks off."""
    if not stream:
        answer = json.loads(raw)
        choice = answer["choices"][0]
        text = (choice["message"].get("reasoning_content") or "") + "|" + choice["message"]["content"]
        return text, answer["usage"]["completion_tokens"], choice["finish_reason"]
    if not raw.endswith(b"data: [DONE]\n\n"):
        raise ValueError("the stream has no end")
    thinking, content, tokens, finish = "", "", 0, ""
    for line in raw.split(b"\n\n"):
        if line.startswith(b"data: {"):
            event = json.loads(line[6:])
            tokens = event.get("usage", {}).get("completion_tokens", tokens)
            for choice in event["choices"]:
                thinking += choice["delta"].get("reasoning_content") or ""
                content += choice["delta"].get("content") or ""
                finish = choice["finish_reason"] or finish
    return f"{thinking}|{content}", tokens, finish


async def ask(url: str, number: int, options: argparse.Namespace, tally: Tally) -> tuple[str, int]:
    """The answer to a question and its tokens; a full server is asked again when it says so."""
    body: dict[str, Any] = {"messages": [{"role": "user", "content": NUMBERS[number]}], "seed": number}
    body |= {"max_tokens": options.max_tokens, "temperature": 1.0, "ignore_eos": options.ignore_eos}
    if options.stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    while True:
        began = time.monotonic()
        status, headers, raw, first = await post(url, body)
        if status not in (429, 503):
            break
        tally.counts["turned_away"] += 1
        await asyncio.sleep(float(headers.get("retry-after", 1)))
    if status != 200:
        raise ValueError(f"status {status}")
    text, tokens, finish = read(raw, options.stream)
    if finish not in ("stop", "length"):
        raise ValueError(f"finish {finish!r}")
    tally.first_s.append(first)
    tally.whole_s.append(time.monotonic() - began)
    return text, tokens


async def client(url: str, alone: list[str], end: float, options: argparse.Namespace, tally: Tally, me: int) -> None:
    """Ask one question after the other until the end."""
    rng = random.Random(me)
    while time.monotonic() < end:
        number = rng.randrange(len(alone))
        tally.counts["asked"] += 1
        try:
            text, tokens = await ask(url, number, options, tally)
        except (OSError, ValueError, asyncio.IncompleteReadError) as error:
            tally.counts["lost"] += 1
            tally.counts[f"{type(error).__name__}: {error}"] += 1
            continue
        tally.counts["answered"] += 1
        if text != alone[number]:
            tally.counts["mixed_up"] += 1
            tally.mixed_up.add(number)
        tally.counts["tokens"] += tokens


async def crowd(options: argparse.Namespace) -> dict[str, Any]:
    """All clients at once."""
    alone = [(await ask(options.url, number, options, Tally()))[0] for number in range(options.questions)]
    tally, began, cpu = Tally(), time.monotonic(), time.process_time()
    clients = (client(options.url, alone, began + options.seconds, options, tally, me) for me in range(options.clients))
    await asyncio.gather(*clients)
    seconds = time.monotonic() - began
    found: dict[str, Any] = {"lost": 0, "mixed_up": 0, "mixed_up_questions": len(tally.mixed_up), **tally.counts}
    found["seconds"] = round(seconds, 2)
    found["tokens_per_s"] = round(tally.counts["tokens"] / seconds, 1)
    found["clients_cpu"] = round((time.process_time() - cpu) / seconds, 3)  # of one core
    for name, values in (("first_event_s", tally.first_s), ("whole_s", tally.whole_s)):
        ranked = sorted(values) or [0.0]
        found[name] = {f"p{share}": round(ranked[len(ranked) * share // 100], 4) for share in (50, 95)}
    return found


def main() -> None:
    """Read the flags, ask, print."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("url", help="without /v1")
    flags.add_argument("--clients", type=int, default=200)
    flags.add_argument("--seconds", type=float, default=60)
    flags.add_argument("--questions", type=int, default=len(NUMBERS), help=f"different ones, at most {len(NUMBERS)}")
    flags.add_argument("--max_tokens", type=int, default=64)
    flags.add_argument("--ignore_eos", action="store_true", help="write max_tokens always")
    flags.add_argument("--stream", action="store_true")
    print(json.dumps(asyncio.run(crowd(flags.parse_args()))))


if __name__ == "__main__":
    main()
