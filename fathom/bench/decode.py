"""Generation: the same greedy texts from the same weights and prompts."""

import logging
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fathom.bench.peers import fastest_generation, generate_greedily, load_transformers, require_peer
from fathom.bench.rounds import describe_conditions, play, summarize
from fathom.bench.shape import SHAPE, describe_shape, published, random_tokens
from fathom.bench.team import Team, Turn
from fathom.checkpoint.hub import load_published
from fathom.config import ModelConfig, SamplingConfig
from fathom.infer import Engine, Request
from fathom.parallel.world import World, keep_freed_memory

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DecodeSize:
    """Rows that are decoded together, and the tokens of each."""

    rows: int
    prompt: int
    new_tokens: int


SIZES = (DecodeSize(rows=32, prompt=32, new_tokens=128),)
ROUNDS = 7


def main(
    peer: str, config: ModelConfig = SHAPE, sizes: Sequence[DecodeSize] = SIZES, rounds: int = ROUNDS
) -> dict[str, Any]:
    """Generated tokens/s of Fathom, and of transformers where it is the peer, for every size.

    Greedy and without an end of sequence, so both sides emit as many tokens. Each side has both cores, as two processes
    with half of the rows or as one; the faster counts.
    """
    require_peer("decode", peer, "transformers")
    conditions = describe_conditions()
    measured = [_measure(peer, config, size, rounds) for size in sizes]
    return {"bench": "decode", "peer": peer, "model": describe_shape(config), "sizes": measured, **conditions}


def _measure(peer: str, config: ModelConfig, size: DecodeSize, rounds: int) -> dict[str, Any]:
    log.info("decoding %d rows: %d tokens after %d", size.rows, size.new_tokens, size.prompt)
    with ExitStack() as stack:
        path = stack.enter_context(published(config))
        teams = [stack.enter_context(Team("fathom", 2, 1, decode_fathom, path, size))]
        teams.append(stack.enter_context(Team("fathom", 1, 1, decode_fathom, path, size)))
        if peer == "transformers":
            teams.append(stack.enter_context(Team("transformers", 1, 2, decode_transformers, path, size)))
            teams.append(stack.enter_context(Team("transformers", 2, 1, decode_transformers, path, size)))
        speeds, last = play(teams, rounds)
        settings = {team.name: team.ready[0] for team in teams if team.ready[0]}
    texts = {name: [text for result in results for text in result["texts"]] for name, results in last.items()}
    first, *others = texts.values()
    return {
        "rows": size.rows,
        "prompt": size.prompt,
        "new_tokens": size.new_tokens,
        "settings": settings,
        "texts_equal": all(other == first for other in others),
        "first_differences": {name: found for name, text in texts.items() if (found := first_difference(first, text))},
        **summarize(speeds, "fathom"),
    }


def first_difference(ours: Sequence[Sequence[int]], theirs: Sequence[Sequence[int]]) -> dict[str, int] | None:
    """Where the texts of two sides part for the first time: a row, a place in it, and in how many rows they do."""
    differing = [row for row, (a, b) in enumerate(zip(ours, theirs, strict=True)) if list(a) != list(b)]
    if not differing:
        return None
    a, b = ours[differing[0]], theirs[differing[0]]
    place = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    return {"row": differing[0], "place": place, "rows": len(differing)}


def decode_fathom(world: World, turn: Turn, path: Path, size: DecodeSize) -> None:
    """A team's job: Fathom's engine over this process's rows."""
    keep_freed_memory()
    model = load_published(path)
    prompts = random_tokens(model.config.vocab_size, size.rows, size.prompt).chunk(world.size)[world.rank].tolist()
    sampling = SamplingConfig(temperature=0.0, max_tokens=size.new_tokens)
    requests = [Request(prompt, sampling, seed=0, stop_ids=frozenset()) for prompt in prompts]
    engine = Engine(model, rows=len(requests))
    result: dict[str, Any] = {}
    while turn(result):
        texts = [pieces[0].tokens for pieces in engine.generate(requests)]
        result = {"tokens": sum(map(len, texts)), "texts": texts}


def decode_transformers(world: World, turn: Turn, path: Path, size: DecodeSize) -> None:
    """A team's job: `generate` of transformers, its fastest cache and experts chosen first."""
    model = load_transformers(path).eval()
    prompts = random_tokens(model.config.vocab_size, size.rows, size.prompt).chunk(world.size)[world.rank]
    experts, cache = fastest_generation(model, prompts, size.new_tokens, world)
    result: dict[str, Any] = {"experts": experts, "cache": cache}
    while turn(result):
        texts = generate_greedily(model, prompts, size.new_tokens, cache)
        result = {"tokens": sum(map(len, texts)), "texts": texts}
