"""Generation: the same greedy texts from the same weights and prompts, and each step beside the machine's roof."""

import logging
import time
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from fathom.bench.peers import (
    fastest_generation,
    generate_greedily,
    load_transformers,
    require_peer,
)
from fathom.bench.probe import product_flops, read_bandwidth, wait
from fathom.bench.rounds import WARM_UP, describe_conditions, play, summarize
from fathom.bench.shape import SHAPES, describe_shape, published, random_tokens
from fathom.bench.step import Roof, describe_step, experts_met, narrowed
from fathom.bench.team import Team, Turn
from fathom.checkpoint.find import find_checkpoint
from fathom.checkpoint.hub import load_published, read_config
from fathom.config import ModelConfig, SamplingConfig
from fathom.infer import Engine, Request
from fathom.kernels.step import has_step
from fathom.model import Transformer
from fathom.parallel.world import World, choose_device, keep_freed_memory

log = logging.getLogger(__name__)

ROUNDS = 5
LAUNCH_TOKENS = 33
ROWS = {"cpu": (1, 32), "cuda": (1, 64, 256)}
SPAN = {"cpu": (32, 128), "cuda": (128, 128)}  # prompt and new tokens
SHAPE = {"cpu": "16m", "cuda": "h200"}


@dataclass(frozen=True)
class DecodeSize:
    """Rows that are decoded together, and the tokens of each."""

    rows: int
    prompt: int
    new_tokens: int


@dataclass(frozen=True, kw_only=True)
class DecodeOptions:
    """What is decoded where, and how far; empty fields take what suits the device."""

    model: str = ""  # 0.7m, 16m, h200, or the directory of a run or checkpoint; by the device unless given
    rows: tuple[int, ...] = ()  # batches: 1, 32 on a CPU; 1, 64, 256 on a GPU
    prompt: int = 0  # tokens of each prompt: 32 on a CPU, 128 on a GPU
    new_tokens: int = 0  # tokens that follow: 128
    rounds: int = ROUNDS  # that count
    device: str = "auto"  # auto, cpu or cuda
    int8: bool = False  # Fathom with weights of 8 bits, on a CPU

    def __post_init__(self) -> None:
        if any(rows < 1 for rows in self.rows) or self.prompt < 0 or self.new_tokens < 0 or self.rounds < 1:
            raise ValueError(
                f"rows={self.rows}, prompt={self.prompt}, new_tokens={self.new_tokens} and rounds={self.rounds} must "
                "be 1 or more each; leave out what the device should choose"
            )
        if self.device not in ("auto", "cpu", "cuda"):
            raise ValueError(f"device={self.device!r} is unknown; choose one of auto, cpu, cuda")

    def sizes(self, device: str) -> list[DecodeSize]:
        """What is measured on a device."""
        prompt, new_tokens = SPAN[device]
        return [
            DecodeSize(rows, self.prompt or prompt, self.new_tokens or new_tokens) for rows in self.rows or ROWS[device]
        ]


@dataclass(frozen=True)
class Place:
    """Where a side decodes, and in what precision."""

    device: str
    int8: bool = False

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.device == "cuda" else torch.float32


def main(peer: str, options: DecodeOptions | None = None) -> dict[str, Any]:
    """Generated tokens/s and tokens per CPU-second of Fathom, and of transformers where it is the peer, for every size.

    Greedy and without an end of sequence, so both sides emit as many tokens. On a CPU each side has both cores, as one
    process or two that share the rows; the faster counts.
    """
    require_peer("decode", peer, "transformers")
    options = options or DecodeOptions()
    place = Place(choose_device(options.device).type, options.int8)
    conditions = describe_conditions()
    with opened(options.model or SHAPE[place.device], place) as path:
        config = read_config(path)
        sizes = [_measure(peer, path, config, size, place, options.rounds) for size in options.sizes(place.device)]
    return {
        "bench": "decode",
        "peer": peer,
        "device": place.device,
        "int8": place.int8,
        "model": describe_shape(config),
        "sizes": sizes,
        **conditions,
    }


@contextmanager
def opened(model: str, place: Place) -> Generator[Path]:
    """A directory with the weights of a named shape, fresh, or those at a path."""
    if model in SHAPES:
        with published(SHAPES[model], "bfloat16" if place.device == "cuda" else "float32") as path:
            yield path
    elif Path(model).exists():
        yield find_checkpoint(Path(model))
    else:
        raise ValueError(f"{model} is no directory; name a run, a checkpoint or a shape: {', '.join(SHAPES)}")


def _measure(peer: str, path: Path, config: ModelConfig, size: DecodeSize, place: Place, rounds: int) -> dict[str, Any]:
    log.info("decoding %d rows: %d tokens after %d", size.rows, size.new_tokens, size.prompt)
    # processes and the threads of each
    forms = [(1, 1)] if place.device == "cuda" else [(1, 1), (1, 2)] if size.rows == 1 else [(2, 1), (1, 1)]
    theirs = [(1, 1)] if place.device == "cuda" else [(1, 1), (1, 2)] if size.rows == 1 else [(1, 2), (2, 1)]
    with ExitStack() as stack:
        teams = [stack.enter_context(Team("fathom", *form, decode_fathom, path, size, place)) for form in forms]
        if peer == "transformers":
            teams += [
                stack.enter_context(Team("transformers", *form, decode_transformers, path, size, place))
                for form in theirs
            ]
        speeds, last = play(teams, rounds)
        settings = {team.name: team.ready[0] for team in teams if team.ready[0]}
    texts = {name: [text for result in results for text in result["texts"]] for name, results in last.items()}
    first, *others = texts.values()
    per_cpu = {name: sum(r["tokens"] for r in rs) / sum(_typical(r["cpu"]) for r in rs) for name, rs in last.items()}
    found = {
        **asdict(size),
        "settings": settings,
        "texts_equal": all(other == first for other in others),
        "first_differences": {name: where for name, text in texts.items() if (where := first_difference(first, text))},
        **summarize(speeds, "fathom"),
        "tokens_per_cpu_s": {name: round(value, 1) for name, value in per_cpu.items()},
    }
    peers = [value for name, value in per_cpu.items() if not name.startswith("fathom")]
    if peers:
        ours = max(value for name, value in per_cpu.items() if name.startswith("fathom"))
        found["ratio_per_cpu_s"] = round(ours / max(peers), 3)
    steps = {name: _step(config, results[0], size, place) for name, results in last.items() if "met" in results[0]}
    drafts = next(results[0]["drafts"] for name, results in last.items() if name.startswith("fathom"))
    return found | {"steps": steps} | ({"drafts": drafts} if drafts else {})


def _typical(values: Sequence[float]) -> float:
    """The median of the rounds that count."""
    return median(values[WARM_UP:])


def _step(config: ModelConfig, result: dict[str, Any], size: DecodeSize, place: Place) -> dict[str, Any]:
    """The step of the first process of a team of ours."""
    cache_size = place.dtype.itemsize
    sizes = (1 if place.int8 else cache_size, cache_size)
    context = size.prompt + size.new_tokens / 2
    return describe_step(
        config, len(result["texts"]), context, _typical(result["step"]), sizes, result["met"], Roof(**result["roof"])
    )


def first_difference(ours: Sequence[Sequence[int]], theirs: Sequence[Sequence[int]]) -> dict[str, int] | None:
    """Where the texts of two sides part for the first time: a row, a place in it, and in how many rows they do."""
    differing = [row for row, (a, b) in enumerate(zip(ours, theirs, strict=True)) if list(a) != list(b)]
    if not differing:
        return None
    a, b = ours[differing[0]], theirs[differing[0]]
    place = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    return {"row": differing[0], "place": place, "rows": len(differing)}


def decode_fathom(world: World, turn: Turn, path: Path, size: DecodeSize, place: Place) -> None:
    """A team's job: Fathom's engine over this process's rows. The first turn does not count, and measures the roof."""
    device = torch.device(place.device)
    if device.type == "cpu":
        keep_freed_memory()
    model = load_published(path, place.dtype, device)
    prompts = random_tokens(model.config.vocab_size, size.rows, size.prompt).chunk(world.size)[world.rank]
    engine = Engine(model, rows=len(prompts), int8=place.int8)
    result = {"compiled": has_step() and not place.int8} if device.type == "cpu" else dict[str, Any]()
    found = dict[str, Any]()
    cpu, steps = list[float](), list[float]()
    while turn(result):
        started = time.process_time()
        texts, seconds = generate(engine, prompts.tolist(), size.new_tokens, device)
        cpu.append(time.process_time() - started)
        steps.append(seconds)
        if len(cpu) == 1:
            whole = torch.cat((prompts, torch.tensor(texts)), dim=1)[:, :-1].to(device)
            found = {
                "met": experts_met(model, whole, size.prompt),
                "roof": asdict(measure_roof(model, len(prompts), place)),
                "drafts": measure_drafts(model, prompts.tolist(), size.new_tokens, device) if len(model.mtp) else None,
            }
        result = {"tokens": sum(map(len, texts)), "texts": texts, "cpu": cpu, "step": steps, **found}


def generate(
    engine: Engine, prompts: Sequence[Sequence[int]], new_tokens: int, device: torch.device
) -> tuple[list[list[int]], float]:
    """Greedy texts, all rows together, and the seconds of a step behind the first, which reads the prompts."""
    sampling = SamplingConfig(temperature=0.0, max_tokens=new_tokens)
    order = [engine.submit(Request(prompt, sampling, seed=0, stop_ids=frozenset())) for prompt in prompts]
    pieces = engine.step()
    wait(device)
    started, before = time.perf_counter(), engine.row_steps
    while engine.busy:
        pieces += engine.step()
    wait(device)
    # a GPU takes several steps between two looks of the host
    seconds = (time.perf_counter() - started) * len(prompts) / max(1, engine.row_steps - before)
    texts = {piece.request: piece.tokens for piece in pieces}
    return [texts[request] for request in order], seconds


def measure_roof(model: Transformer, rows: int, place: Place) -> Roof:
    """What this process can reach, and the step of a model that is nothing but calls."""
    device = torch.device(place.device)
    bandwidth = read_bandwidth(sum(parameter.nbytes for parameter in model.parameters()), device)
    with torch.device(device):
        small = Transformer(narrowed(model.config))
    small = small.to(device, place.dtype)
    small.initialise(torch.Generator(device).manual_seed(0))
    engine = Engine(small, rows)
    prompts = random_tokens(small.config.vocab_size, rows, 4).tolist()
    generate(engine, prompts, LAUNCH_TOKENS, device)
    launch = min(generate(engine, prompts, LAUNCH_TOKENS, device)[1] for _ in range(3))
    return Roof(bandwidth, product_flops(place.dtype, device), launch)


def measure_drafts(
    model: Transformer, prompts: Sequence[Sequence[int]], new_tokens: int, device: torch.device
) -> dict[str, float]:
    """Decoding with drafts of the model's MTP module: how many are kept, and what a row gains by a step."""
    engine = Engine(model, rows=len(prompts), drafts=True)
    generate(engine, prompts, new_tokens, device)
    _, seconds = generate(engine, prompts, new_tokens, device)
    return {
        "acceptance": round(engine.acceptance, 4),
        "tokens_per_step": round(engine.tokens_per_step, 3),
        "step_ms": round(1e3 * seconds, 4),
    }


def decode_transformers(world: World, turn: Turn, path: Path, size: DecodeSize, place: Place) -> None:
    """A team's job: `generate` of transformers, its fastest cache and experts chosen first."""
    device = torch.device(place.device)
    model = load_transformers(path, place.dtype, device).eval()
    rows = random_tokens(model.config.vocab_size, size.rows, size.prompt).chunk(world.size)[world.rank]
    prompts = rows.to(device)
    experts, cache = fastest_generation(model, prompts, size.new_tokens, world)
    result: dict[str, Any] = {"experts": experts, "cache": cache}
    cpu = list[float]()
    while turn(result):
        started = time.process_time()
        texts = generate_greedily(model, prompts, size.new_tokens, cache)
        cpu.append(time.process_time() - started)
        result = {"tokens": sum(map(len, texts)), "texts": texts, "cpu": cpu}
