"""How fast the server is beside its engine alone: python tests/serve/beside_engine.py --rounds 5

Each round the engine writes the questions of crowd.py by itself, then `fathom serve --demo` writes whole answers, then
streamed ones, for clients in a process of their own. Prints one JSON line: tokens a second of all rounds, medians of
their ratios to the engine's of the same round, and the share of a core that the clients took.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import torch
from crowd import NUMBERS

from fathom.config import SamplingConfig
from fathom.demo import RUN
from fathom.infer.engine import Engine
from fathom.infer.request import Request
from fathom.infer.speaker import Speaker, load_speaker
from fathom.serve.options import ServeOptions
from fathom.serve.room import open_engine


def engine_speed(engine: Engine, speaker: Speaker, requests: int, max_tokens: int) -> float:
    """Tokens a second of so many questions, `max_tokens` each, temperature 1."""
    sampling = SamplingConfig(max_tokens=max_tokens)
    prompts = [speaker.encode([{"role": "user", "content": NUMBERS[i % len(NUMBERS)]}]) for i in range(requests)]
    began = time.monotonic()
    pieces = engine.generate([Request(prompt, sampling, i, frozenset()) for i, prompt in enumerate(prompts)])
    seconds = time.monotonic() - began
    return sum(len(piece.tokens) for pieces_of in pieces for piece in pieces_of) / seconds


@contextmanager
def served(rows: int, queue: int) -> Generator[str]:
    """The demo's server on a free port; its address. What it logs goes to a file: a pipe that no one reads fills up."""
    command = [sys.executable, "-m", "fathom", "serve", "--demo", "--port", "0", "--device", "cpu"]
    with tempfile.NamedTemporaryFile("w+") as log:
        process = subprocess.Popen(
            [*command, "--rows", str(rows), "--queue", str(queue)], stderr=subprocess.STDOUT, stdout=log
        )
        try:
            while not (address := re.search(r"http://127\.0\.0\.1:\d+", Path(log.name).read_text())):
                if process.poll() is not None:
                    raise RuntimeError(f"the server ended before it named its address: {Path(log.name).read_text()}")
                time.sleep(0.1)
            yield address[0]
        finally:
            process.terminate()
            process.wait()


def crowd(url: str, options: argparse.Namespace, *flags: str) -> dict[str, Any]:
    """What crowd.py found."""
    command = [sys.executable, str(Path(__file__).with_name("crowd.py")), url, "--ignore_eos", "--questions", "8"]
    command += ["--clients", str(options.clients), "--seconds", str(options.seconds)]
    command += ["--max_tokens", str(options.max_tokens), *flags]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All rounds; the engine's first is not counted."""
    speaker = load_speaker(RUN, torch.device("cpu"))
    engine = open_engine(speaker.model, ServeOptions(rows=options.rows, device="cpu"))
    engine_speed(engine, speaker, options.rows, options.max_tokens)
    rounds: list[dict[str, float]] = []
    clients: list[float] = []
    with served(options.rows, options.clients) as url:
        for _ in range(options.rounds):
            alone = engine_speed(engine, speaker, options.requests, options.max_tokens)
            whole, streamed = crowd(url, options), crowd(url, options, "--stream")
            speeds = {"engine": alone, "whole": whole["tokens_per_s"], "streamed": streamed["tokens_per_s"]}
            rounds.append({name: round(speed, 1) for name, speed in speeds.items()})
            clients += [whole["clients_cpu"], streamed["clients_cpu"]]
    shares = {kind: round(median(r[kind] / r["engine"] for r in rounds), 3) for kind in ("whole", "streamed")}
    cores = {"whole": round(median(clients[::2]), 3), "streamed": round(median(clients[1::2]), 3)}
    return {"options": vars(options), "threads": torch.get_num_threads(), "rounds": rounds} | {
        "share_of_engine": shares,
        "clients_cores": cores,
    }


def main() -> None:
    """Read the flags, measure, print."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--rounds", type=int, default=5)
    flags.add_argument("--rows", type=int, default=16, help="completions written together")
    flags.add_argument("--clients", type=int, default=64)
    flags.add_argument("--seconds", type=float, default=15, help="of each crowd")
    flags.add_argument("--requests", type=int, default=256, help="of the engine alone")
    flags.add_argument("--max_tokens", type=int, default=256)
    print(json.dumps(measure(flags.parse_args())))


if __name__ == "__main__":
    main()
