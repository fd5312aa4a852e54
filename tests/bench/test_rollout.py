"""Both sides of the GRPO bench sample and train on the same prompts and lengths."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fathom.bench import rollout
from fathom.bench.rollout import Hardware, RolloutSize, problems_of, published_with_tokenizer
from fathom.config import ModelConfig

CPU = Hardware("cpu")
SIZE = RolloutSize(prompts=4, group=2, max_tokens=6, steps=1)


def test_fathom_counts_every_sampled_token(tiny: ModelConfig, play: Callable[..., list[Any]]) -> None:
    with published_with_tokenizer(tiny) as path:
        turns = play(rollout.roll_out_fathom, 2, path, SIZE, CPU)
    for turn in turns[1:]:
        assert 6 * 8 - 12 <= turn["tokens"] <= 6 * 8  # a few answers may end early


def test_words_lengthen_prompts_and_leave_the_problem(tiny: ModelConfig, play: Callable[..., list[Any]]) -> None:
    longer = replace(SIZE, words=60)
    for short, long in zip(problems_of(SIZE), problems_of(longer), strict=True):
        assert long == replace(short, question=long.question)
        assert long.question.endswith(f" {short.question}")
    with published_with_tokenizer(tiny) as path:
        _, short_turn = play(rollout.roll_out_fathom, 1, path, SIZE, CPU)
        _, long_turn = play(rollout.roll_out_fathom, 1, path, longer, CPU)
    assert 20 <= long_turn["prompt"] - short_turn["prompt"] <= 62
    assert max(long_turn["gap"], short_turn["gap"]) < 1e-5


@pytest.mark.slow
def test_trl_takes_its_turns(tiny: ModelConfig, play: Callable[..., list[Any]], tmp_path: Path) -> None:
    pytest.importorskip("trl")
    with published_with_tokenizer(tiny) as path:
        ready, *turns = play(rollout.roll_out_trl, 2, path, SIZE, CPU)
    assert set(ready) == {"experts", "cache"}
    assert len(turns) == 2
    for turn in turns:
        assert 6 * 8 - 12 <= turn["tokens"] <= 6 * 8


@pytest.mark.ranks
def test_the_bench_alone(tiny: ModelConfig) -> None:
    found = rollout.main("none", tiny, [SIZE], rounds=1, device="cpu")
    (size,) = found["sizes"]
    assert 4 < size["mean_length"]["fathom, 2 x 1"] <= 6
    assert (size["prompts"], size["group"], size["max_tokens"], size["steps"]) == (4, 2, 6, 1)
