"""Both sides of the GRPO bench sample and train on the same prompts and lengths."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fathom.bench import rollout
from fathom.bench.rollout import RolloutSize, published_with_tokenizer
from fathom.config import ModelConfig

SIZE = RolloutSize(prompts=4, group=2, max_tokens=6, steps=1)


def test_fathom_counts_every_sampled_token(tiny: ModelConfig, play: Callable[..., list[Any]]) -> None:
    with published_with_tokenizer(tiny) as path:
        turns = play(rollout.roll_out_fathom, 2, path, SIZE)
    for turn in turns[1:]:
        assert 6 * 8 - 12 <= turn["tokens"] <= 6 * 8  # a few answers may end early


@pytest.mark.slow
def test_trl_takes_its_turns(tiny: ModelConfig, play: Callable[..., list[Any]], tmp_path: Path) -> None:
    pytest.importorskip("trl")
    with published_with_tokenizer(tiny) as path:
        ready, *turns = play(rollout.roll_out_trl, 2, path, SIZE)
    assert set(ready) == {"experts", "cache"}
    assert len(turns) == 2
    for turn in turns:
        assert 6 * 8 - 12 <= turn["tokens"] <= 6 * 8


@pytest.mark.ranks
def test_the_bench_alone(tiny: ModelConfig) -> None:
    found = rollout.main("none", tiny, [SIZE], rounds=1)
    (size,) = found["sizes"]
    assert 4 < size["mean_length"]["fathom, 2 x 1"] <= 6
    assert (size["prompts"], size["group"], size["max_tokens"], size["steps"]) == (4, 2, 6, 1)
