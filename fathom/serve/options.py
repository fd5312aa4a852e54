"""What `fathom serve` is started with. Imports no torch."""

import ipaddress
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fathom.config.checks import require_choice, require_positive

KEY_VARIABLE = "FATHOM_API_KEY"  # of the environment: keys, with commas between them
SHORTEST_KEY = 8  # characters
ENGINES = ("fathom", "vllm", "sglang")
REASONING = ("both", "reasoning_content", "reasoning", "inline")


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """Where the server listens, who may ask, and how much it takes at once."""

    host: str = "127.0.0.1"  # another address than this machine's own needs an API key
    port: int = 8000  # 0 takes a free one
    name: str | None = None  # model id that clients see (the directory's name)
    api_key_file: Path | None = None  # one key a line; FATHOM_API_KEY in the environment adds to them
    rows: int = 16  # completions written together
    context: int | None = None  # most tokens of a prompt and its completion (the model's own limit)
    default_max_tokens: int = 4096  # of a request that names none; never more than its context has left
    pages: int | None = None  # of the cache, of 16 tokens on a CPU and 64 on a GPU (what the rows fill, if that fits)
    drafts: int | Literal["auto"] = 0  # MTP drafts a step, or as many as pay here; texts are the same
    queue: int = 128  # completions that may wait behind those being written; more get 429
    stages: int = 2  # other stages of the run that are loaded at once when asked for, as NAME@sft; 0 offers none
    choices: int = 16  # most completions of one request (n)
    body_bytes: int = 4 << 20  # most bytes of a request
    reasoning: Literal["both", "reasoning_content", "reasoning", "inline"] = "both"  # fields that carry thinking
    keep_alive_s: float = 15.0  # seconds of silence after which a stream gets a comment
    events_per_s: float = 20.0  # of one stream; tokens that come faster share an event
    drain_s: float = 60.0  # seconds that requests have to finish after SIGTERM
    cors_origin: tuple[str, ...] = ()  # pages of other origins that may ask; none by default
    device: str = "auto"  # auto, cpu or cuda
    engine: Literal["fathom", "vllm", "sglang"] = "fathom"  # who writes the completions; the others run as a child
    engine_command: str = ""  # words that start it (`vllm serve`, `python -m sglang.launch_server`)
    engine_args: str = ""  # further flags of its own, as they are: "--tensor-parallel-size 8"

    def __post_init__(self) -> None:
        require_positive(
            "serve",
            rows=self.rows,
            default_max_tokens=self.default_max_tokens,
            choices=self.choices,
            body_bytes=self.body_bytes,
            keep_alive_s=self.keep_alive_s,
            events_per_s=self.events_per_s,
        )
        require_choice("serve", "reasoning", self.reasoning, REASONING)
        require_choice("serve", "device", self.device, ("auto", "cpu", "cuda"))
        require_choice("serve", "engine", self.engine, ENGINES)
        if self.engine == "fathom" and (self.engine_command or self.engine_args):
            raise ValueError("engine_command and engine_args are for --engine vllm or sglang; leave them out")
        if not 0 <= self.port < 1 << 16:
            raise ValueError(f"port={self.port} is no port; give one from 0 to 65535")
        if self.pages is not None and self.pages < 1:
            raise ValueError(f"pages={self.pages} holds no text; give 1 or more, or leave it out")
        if self.queue < 0 or self.drain_s < 0:
            raise ValueError(f"queue={self.queue} and drain_s={self.drain_s} must not be negative; 0 is none")
        if self.drafts != "auto" and (type(self.drafts) is not int or self.drafts < 0):
            raise ValueError(f'drafts={self.drafts!r} is no count of drafts; give 0 or more, or "auto"')
        if self.stages < 0:
            raise ValueError(f"stages={self.stages} is negative; give how many to hold loaded, 0 for none")
        if self.context is not None and self.context < 2:
            raise ValueError(f"context={self.context} holds no prompt and completion; give 2 or more")


def read_keys(options: ServeOptions) -> tuple[str, ...]:
    """API keys of the file and the environment; ValueError where one is too short or a public address has none."""
    keys = [key.strip() for key in os.environ.get(KEY_VARIABLE, "").split(",")]
    if options.api_key_file:
        lines = options.api_key_file.read_text(encoding="utf-8").splitlines()
        keys += [line.strip() for line in lines if not line.lstrip().startswith("#")]
    found = tuple(dict.fromkeys(key for key in keys if key))
    if any(len(key) < SHORTEST_KEY or not key.isascii() for key in found):
        raise ValueError(f"an API key is shorter than {SHORTEST_KEY} characters or not ASCII; give a longer one")
    if options.api_key_file and not found:
        raise ValueError(f"{options.api_key_file} holds no key; write one a line")
    if not found and not is_local(options.host):
        raise ValueError(
            f"host={options.host} can be reached from other machines and there is no API key; give --api_key_file, "
            f"set {KEY_VARIABLE}, or listen on 127.0.0.1"
        )
    return found


def is_local(host: str) -> bool:
    """Whether only this machine reaches the address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
