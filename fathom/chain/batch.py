"""A file of prompts answered into a file of completions: one object a line, added as they finish, resumable."""

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from fathom.chain.progress import progress
from fathom.config import SamplingConfig
from fathom.infer.lines import Line, read_lines
from fathom.infer.offline import Completion, Engine
from fathom.infer.request import Request
from fathom.infer.speaker import Speaker
from fathom.runs import append_record

log = logging.getLogger(__name__)


@dataclass
class Tally:
    """What became of the lines of a file."""

    written: int = 0  # answered now
    kept: int = 0  # answered before
    bad: list[int] = field(default_factory=list[int])  # numbers of the lines left out


def answer_file(
    engine: Engine, source: Path, output: Path, sampling: SamplingConfig, seed: int, console: Console
) -> Tally:
    """Answer every line of `source` that `output` holds no answer to; `infer/lines.py` says what a line is.

    An answer is an object with id, key, prompt or messages, and completions, each with text, thinking, answer, finish
    and the number of its tokens. A bad line is named in the log and left out. An interrupted call, given again, goes
    on; a last line that it tore is replaced. Raises ValueError where `output` holds an answer to something else.
    """
    if not source.exists():
        raise ValueError(f"there is no file {source}; name one with a JSON object a line")
    if output.exists() and output.samefile(source):
        raise ValueError(f"{output} is the input itself; name another --output")
    tally = Tally()
    done, model = read_answers(output), engine.speaker.name
    lines: list[Line] = []
    for line in read_lines(source, sampling, seed):
        if isinstance(line, tuple):
            _leave_out(tally, source, *line)
        elif (key := done.get(json.dumps(line.id))) is None:
            lines.append(line)
        elif key == line.key(model):
            tally.kept += 1
        else:
            raise ValueError(
                f"{output} answers id {line.id!r} of {source} line {line.number} for another prompt, sampling, seed or "
                "model; name another --output, or give the settings that it was begun with"
            )
    with progress(console, source.name, len(lines)) as notify:
        asked: list[Line] = []
        for place, outcome in engine.complete(_requests(engine.speaker, lines, asked, tally, source)):
            if isinstance(outcome, ValueError):
                _leave_out(tally, source, asked[place].number, str(outcome))
            else:
                append_record(output, answer_record(asked[place], outcome, model))
                tally.written += 1
            notify(tally.written, {})
    tally.bad.sort()
    return tally


def answer_record(line: Line, completions: list[Completion], model: str) -> dict[str, Any]:
    """The line of an output file."""
    return {
        "id": line.id,
        "key": line.key(model),
        "model": model,
        "prompt" if isinstance(line.prompt, str) else "messages": line.prompt,
        "completions": [
            {
                "text": completion.text,
                "thinking": completion.thinking,
                "answer": completion.answer,
                "finish": completion.finish,
                "tokens": len(completion.tokens),
            }
            for completion in completions
        ],
    }


def read_answers(output: Path) -> dict[str, str]:
    """The key of every answer in a file, by its id as JSON; a torn last line is passed over."""
    whole = output.read_bytes().rpartition(b"\n")[0] if output.exists() else b""
    found: dict[str, str] = {}
    for number, content in enumerate(whole.split(b"\n") if whole else [], start=1):
        try:
            record = json.loads(content)
            found[json.dumps(record["id"])] = str(record["key"])
        except (ValueError, KeyError, TypeError):
            raise ValueError(
                f"{output} line {number} is no answer of `fathom generate`; delete that line or name another --output"
            ) from None
    return found


def _requests(speaker: Speaker, lines: list[Line], asked: list[Line], tally: Tally, source: Path) -> Iterator[Request]:
    """The request of each line that has one; `asked` gets the line at the request's place."""
    for line in lines:
        try:
            request = Request(speaker.encode(line.prompt), line.sampling, line.seed, speaker.stop_ids, line.n)
        except ValueError as error:
            _leave_out(tally, source, line.number, str(error))
            continue
        asked.append(line)
        yield request


def _leave_out(tally: Tally, source: Path, number: int, reason: str) -> None:
    tally.bad.append(number)
    log.warning("%s line %d is left out: %s", source, number, reason)
