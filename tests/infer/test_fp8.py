"""Latents cached in FP8: by the definition on every path, the error measured and shown, refused where it cannot be."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from fathom.config import SamplingConfig
from fathom.infer import Engine, Request
from fathom.infer.check import check_latents
from fathom.infer.fp8 import compare_fp8
from fathom.kernels.latents import dequantize_latents, quantize_latents
from fathom.model import Transformer
from fathom.model.mla import MLA

POOLS: dict[str, dict[str, Any]] = {
    "ample": {"pages": 60, "page_size": 4},
    "chunks, drafts": {"pages": 60, "page_size": 4, "step_tokens": 16, "drafts": 2},
    "preempted": {"pages": 19, "page_size": 4, "step_tokens": 16},
}
START = [number * 3 % 40 for number in range(26)]
REQUESTS = [
    Request([*START[: 26 - number], number], SamplingConfig(temperature=0.5, max_tokens=14), number, frozenset(), n=2)
    for number in (0, 0, 5, 11)
]


@contextmanager
def rounded_latents(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A model that sees what the cache would hold, without any cache."""
    exact = MLA._latents

    def rounded(mla: MLA, *inputs: Any) -> Tensor:
        latents, rank = exact(mla, *inputs), mla.config.kv_lora_rank
        return dequantize_latents(quantize_latents(latents, rank), rank, latents.shape[-1] - rank)

    with monkeypatch.context() as patch:
        patch.setattr(MLA, "_latents", rounded)
        yield


def scored(model: Transformer, request: Request, tokens: list[int]) -> list[float]:
    """Log-probabilities of a completion by one whole pass."""
    with torch.no_grad():
        hidden = model(torch.tensor([[*request.prompt, *tokens[:-1]]]))[0, len(request.prompt) - 1 :]
        law = model.logits(hidden).div(request.sampling.temperature).log_softmax(-1)
    return law.gather(1, torch.tensor(tokens).unsqueeze(1)).squeeze(1).tolist()


@pytest.mark.parametrize("pool", POOLS)
def test_texts_are_those_of_rounded_latents_whatever_the_passes(
    latent: Transformer, pool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(latent, rows=6, latents="fp8", **POOLS[pool])
    gap = 0.0
    for request, pieces in zip(REQUESTS, engine.generate(REQUESTS), strict=True):
        for piece in pieces:
            with rounded_latents(monkeypatch):
                assert piece.logprobs == pytest.approx(scored(latent, request, piece.tokens), abs=1e-4)
            exact = scored(latent, request, piece.tokens)
            gap = max(gap, *(abs(a - b) for a, b in zip(exact, piece.logprobs, strict=True)))
    assert 0.01 < gap < 1
    assert engine.counters.prefix_hits > 0 and engine.counters.pages_used == 0
    assert (engine.counters.preemptions > 0) == (pool == "preempted")


def test_all_passes_give_the_same_texts(latent: Transformer) -> None:
    texts = [
        [[piece.tokens for piece in each] for each in Engine(latent, 6, latents="fp8", **pool).generate(REQUESTS)]
        for pool in POOLS.values()
    ]
    assert texts[0] == texts[1] == texts[2]
    plain = Engine(latent, 6).generate(REQUESTS)
    assert texts[0] != [[piece.tokens for piece in each] for each in plain]


@pytest.fixture(scope="module")
def trained(latent: Transformer) -> Transformer:
    """Of two tokens it has learnt to give the sum, modulo 11."""
    model = Transformer(replace(latent.config, initializer_range=0.1, num_nextn_predict_layers=0))
    model.initialise(torch.Generator().manual_seed(2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for step in range(120):
        tokens = sums(step, rows=32)
        logits = model.logits(model(tokens[:, :-1]))
        torch.nn.functional.cross_entropy(logits[:, 1:].flatten(0, 1), tokens[:, 2:].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def sums(seed: int, rows: int) -> Tensor:
    rows_of = torch.randint(11, (rows, 2), generator=torch.Generator().manual_seed(seed)).unbind(1)
    columns = list(rows_of)
    for _ in range(22):
        columns.append((columns[-1] + columns[-2]) % 11)
    return torch.stack(columns, dim=1)


def test_the_error_of_a_trained_model_is_measured_and_small(trained: Transformer) -> None:
    tokens = sums(999, rows=20)
    report = compare_fp8(trained, tokens)
    assert 1e-3 < report.error < 0.05
    assert report.agreement > 0.97
    assert report.places == 20 * 24
    request = Request(tokens[0, :6].tolist(), SamplingConfig(temperature=0.0, max_tokens=18), 0, frozenset())
    for latents in (None, "fp8"):
        (piece,) = Engine(trained, rows=1, pages=9, page_size=4, latents=latents).generate([request])[0]
        assert piece.tokens == tokens[0, 6:].tolist()


def test_the_error_is_logged(latent: Transformer, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="fathom"):
        Engine(latent, rows=1, pages=8)
        assert not caplog.records
        Engine(latent, rows=1, pages=8, latents="fp8")
    assert f"latents in FP8: {compare_fp8(latent)}" in caplog.text


def test_engines_that_cannot_cache_in_fp8_are_refused(model: Transformer, latent: Transformer) -> None:
    if model.config.attention.kind == "gqa":
        with pytest.raises(ValueError, match="this model has gqa, which caches no latents"):
            Engine(model, rows=1, pages=8, latents="fp8")
        return
    with pytest.raises(ValueError, match="this engine has no pages; give pages or leave it out"):
        Engine(latent, rows=1, latents="fp8")
    with pytest.raises(ValueError, match="latents='int4' is unknown"):
        check_latents("int4")
    odd = Transformer(replace(latent.config, attention=replace(latent.config.attention, kv_lora_rank=10)))
    with pytest.raises(ValueError, match="kv_lora_rank=10 is no multiple of 4"):
        Engine(odd, rows=1, pages=8, latents="fp8")
