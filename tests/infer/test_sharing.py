"""Prompts that begin alike and come together are read once."""

from collections.abc import Iterator
from typing import Any

import pytest
from torch import Tensor

from fathom.config import SamplingConfig
from fathom.infer import Engine, Request
from fathom.model import Transformer

PROMPT = [number * 7 % 40 for number in range(22)]
POOL: dict[str, Any] = {"pages": 60, "page_size": 4}


@pytest.fixture
def read(latent: Transformer) -> Iterator[list[int]]:
    """The tokens of every pass, padding included."""
    tokens: list[int] = []

    def note(_: object, inputs: tuple[Tensor]) -> None:
        tokens.append(inputs[0].numel())

    hook = latent.embedding.register_forward_pre_hook(note)
    yield tokens
    hook.remove()


def asked(prompt: list[int], seed: int = 0, n: int = 1, max_tokens: int = 1, **more: Any) -> Request:
    return Request(prompt, SamplingConfig(max_tokens=max_tokens), seed, frozenset(), n=n, **more)


@pytest.mark.parametrize("budget", [2048, 1])
def test_equal_prompts_of_one_step_are_read_once_but_for_their_last_page(
    latent: Transformer, read: list[int], budget: int
) -> None:
    engine = Engine(latent, rows=8, step_tokens=budget, **POOL)
    pieces = engine.generate([asked(PROMPT, seed, n=2) for seed in range(3)])
    assert sum(read) == 22 + 2 + 2
    assert [[piece.cached for piece in each] for each in pieces] == [[0, 0], [20, 20], [20, 20]]
    assert engine.counters.prefix_hits == 40


def test_prompts_that_begin_alike_read_what_is_their_own(latent: Transformer, read: list[int]) -> None:
    engine = Engine(latent, rows=8, step_tokens=16, **POOL)
    other, short = [*PROMPT[:9], *range(30, 40)], PROMPT[:8]
    pieces = engine.generate([asked(PROMPT), asked(other), asked(PROMPT, namespace="b"), asked(short)])
    assert [each.cached for (each,) in pieces] == [0, 8, 0, 4]
    assert sum(each.cached for (each,) in pieces) + sum(read) >= 22 + 19 + 22 + 8  # passes may be padded
    assert engine.counters.prefix_hits == 12


@pytest.mark.parametrize("drafts", [0, 2])
def test_texts_of_prompts_that_come_together_are_those_of_each_alone(narrow: Transformer, drafts: int) -> None:
    prompt = [1, 2, 3, 4, 0] * 6
    requests = [
        *(asked(prompt, seed, n=2, max_tokens=9) for seed in range(2)),
        *(asked([*prompt[:cut], 2], cut, max_tokens=9) for cut in (30, 17, 9, 29)),
    ]
    alone = [[piece.tokens for piece in Engine(narrow, rows=2).generate([each])[0]] for each in requests]
    for pool in ({}, POOL, {**POOL, "step_tokens": 16}, {**POOL, "pages": 18}):
        pieces = Engine(narrow, rows=8, drafts=drafts, **pool).generate(requests)
        assert [[piece.tokens for piece in each] for each in pieces] == alone


def test_whoever_waits_for_a_cancelled_text_reads_it_itself(latent: Transformer, read: list[int]) -> None:
    engine = Engine(latent, rows=4, step_tokens=16, **POOL)
    long = PROMPT * 2
    first, second = engine.submit(asked(long)), engine.submit(asked(long, max_tokens=5))
    engine.step()
    assert sum(read) == 16
    engine.cancel(first)
    pieces = [piece for _ in range(9) for piece in engine.step()]
    assert [(piece.request, piece.cached) for piece in pieces] == [(second, 16)]
    assert pieces[0].tokens == Engine(latent, rows=1).generate([asked(long, max_tokens=5)])[0][0].tokens
    assert engine.counters.pages_used == 0


def test_without_pages_equal_prompts_of_one_step_share_a_pass(latent: Transformer, read: list[int]) -> None:
    requests = [asked(PROMPT, 1, n=3), asked([5, 6]), asked(PROMPT, 2, n=2), asked([5, 6], 3)]
    found = Engine(latent, rows=8).generate(requests)
    assert read == [2 * 22]  # the short one is padded
    for request, pieces in zip(requests, found, strict=True):
        alone = Engine(latent, rows=8).generate([request])[0]
        assert [piece.tokens for piece in pieces] == [piece.tokens for piece in alone]
