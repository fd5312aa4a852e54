"""Experts of every token, as the model itself records them, whatever way the engine takes."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from fathom.config import SamplingConfig
from fathom.infer import Engine, Piece, Request, replay_of
from fathom.model import RoutingTrace, Transformer

START = [1, 2, 3, 4, 0, 2, 2, 1, 3, 0, 4, 1, 2]
LONG = [*START, *START]
WAYS: dict[str, dict[str, Any]] = {
    "stretches": {},
    "stretches, drafts": {"drafts": 3},
    "pages": {"pages": 60, "page_size": 4},
    "pages, drafts": {"pages": 60, "page_size": 4, "drafts": 2},
    "preempted": {"pages": 16, "page_size": 4, "step_tokens": 20},
    "preempted, drafts": {"pages": 17, "page_size": 4, "step_tokens": 20, "drafts": 2},
    "chunks": {"pages": 60, "page_size": 4, "prefix_cache": False, "step_tokens": 1},
}


@pytest.fixture(scope="module")
def deep(latent: Transformer) -> Transformer:
    """With a dense layer and two of experts."""
    model = Transformer(replace(latent.config, num_hidden_layers=3))
    model.initialise(torch.Generator().manual_seed(8))
    return model


def asked(count: int = 7, **more: Any) -> list[Request]:
    """Requests of which some begin alike, and every third asks for no experts."""
    return [
        Request(
            [*LONG[: 3 + 8 * number % 23], number % 5],
            SamplingConfig(temperature=1.0 if number % 2 else 0.0, max_tokens=5 + 3 * number, min_tokens=number % 3),
            seed=number,
            stop_ids=frozenset({4} if number % 2 else ()),
            n=1 + number % 3,
            experts=number % 3 != 1,
            **more,
        )
        for number in range(count)
    ]


def recorded(model: Transformer, text: Sequence[int]) -> Tensor:
    """(T, L, K): what one whole pass chooses for every token."""
    trace = RoutingTrace(records=True)
    with torch.no_grad():
        model(torch.tensor([text]), trace=trace)
    return torch.stack([layer[0] for layer in trace.experts], dim=1).short()


def check(model: Transformer, request: Request, pieces: Sequence[Piece]) -> None:
    """The pieces of one sample carry what a pass over its text records."""
    first, tokens = len(request.prompt), [token for piece in pieces for token in piece.tokens]
    if not request.experts:
        assert all(piece.experts is None and piece.prompt_experts is None for piece in pieces)
        return
    expected = recorded(model, [*request.prompt, *tokens[:-1]])
    assert [piece.prompt_experts is None for piece in pieces] == [number > 0 for number in range(len(pieces))]
    assert pieces[0].prompt_experts is not None and pieces[0].prompt_experts.dtype == torch.int16
    assert torch.equal(pieces[0].prompt_experts, expected[:first])
    drawn = [piece.experts for piece in pieces if piece.experts is not None]
    assert [len(each) for each in drawn] == [len(piece.tokens) for piece in pieces]
    assert torch.equal(torch.cat(drawn), expected[first - 1 :])


@pytest.mark.parametrize("way", WAYS)
def test_experts_are_those_that_a_whole_pass_records(narrow: Transformer, way: str) -> None:
    engine, requests = Engine(narrow, rows=5, **WAYS[way]), asked()
    for request, pieces in zip(requests, engine.generate(requests), strict=True):
        for piece in pieces:
            check(narrow, request, [piece])
    assert (engine.counters.preemptions > 0) == ("preempted" in way)
    assert (engine.counters.prefix_hits > 0) == ("pages" in way or "preempted" in way)


@pytest.mark.parametrize("way", ["stretches, drafts", "preempted"])
def test_streamed_pieces_carry_their_own_share_and_the_prompt_once(deep: Transformer, way: str) -> None:
    chunks: dict[str, Any] = {**WAYS[way], "step_tokens": 6}
    engine, requests = Engine(deep, rows=5, **chunks), asked()
    ids = {engine.submit(request, stream=True): request for request in requests}
    found: dict[tuple[int, int], list[Piece]] = defaultdict(list)
    while engine.busy:
        for piece in engine.step():
            found[piece.request, piece.sample].append(piece)
    for (number, _), pieces in found.items():
        check(deep, ids[number], pieces)


def test_cached_prompts_come_with_their_experts_or_are_read_anew(deep: Transformer) -> None:
    engine, law = Engine(deep, rows=4, pages=40, page_size=4), SamplingConfig(max_tokens=9)
    plain = Request(START, law, seed=1, stop_ids=frozenset())
    curious = replace(plain, experts=True)
    for request, cached in ((plain, 0), (plain, 12), (curious, 0), (curious, 12), (plain, 12)):
        (piece,) = engine.generate([request])[0]
        assert piece.cached == cached
        check(deep, request, [piece])
    answer = [*START, *piece.tokens, 3]  # pages of a completion are found again, too
    (further,) = engine.generate([replace(curious, prompt=answer)])[0]
    assert further.cached == 20
    check(deep, replace(curious, prompt=answer), [further])


@pytest.mark.parametrize("way", ["stretches", "pages"])
def test_after_new_weights_tokens_keep_the_experts_that_drew_them(way: str, deep: Transformer) -> None:
    model = Transformer(deep.config)
    model.load_state_dict(deep.state_dict())
    later = {name: weight.roll(1, 0) if "router" in name else weight for name, weight in deep.state_dict().items()}
    request = Request(START, SamplingConfig(max_tokens=12), seed=3, stop_ids=frozenset(), n=2, experts=True)
    engine = Engine(model, rows=4, **WAYS[way])
    engine.submit(request)
    for _ in range(5):
        engine.step()
    engine.swap_weights(later, in_flight="recompute")
    pieces: list[Piece] = []
    while engine.busy:
        pieces += engine.step()
    for piece in pieces:
        text, first = [*START, *piece.tokens[:-1]], len(START) - 1
        old, new = recorded(deep, text), recorded(model, text)
        assert piece.prompt_experts is not None and torch.equal(piece.prompt_experts, old[: len(START)])
        drawn = 6  # two in the first step, which reads the prompt
        assert piece.experts is not None and torch.equal(piece.experts[:drawn], old[first : first + drawn])
        assert torch.equal(piece.experts[drawn:], new[first + drawn :])
        assert not torch.equal(old, new)


def test_a_training_pass_that_replays_gives_the_samplers_logprobs(deep: Transformer) -> None:
    requests = [replace(request, experts=True) for request in asked(4)]
    engine = Engine(deep, rows=5, drafts=2, pages=30, page_size=4)
    later = Transformer(deep.config)
    later.load_state_dict(deep.state_dict())
    with torch.no_grad():  # its routers choose others: only a replay can agree
        for name, buffer in later.named_buffers():
            if name.endswith("selection_bias"):
                buffer.copy_(torch.tensor([3.0, 0.0, 0.0, 3.0]))
    differs = 0.0
    for request, pieces in zip(requests, engine.generate(requests), strict=True):
        for piece in pieces:
            text = torch.tensor([[*request.prompt, *piece.tokens]])
            replay = replay_of([piece]).unsqueeze(1)
            assert replay.shape[:3] == (2, 1, text.shape[1]) and bool((replay[:, :, -1] == -1).all())
            for replayed in (replay, None):
                hidden = later(text, trace=RoutingTrace(replay=replayed))
                law = later.logits(hidden[0, len(request.prompt) - 1 : -1])
                law = law.div(request.sampling.temperature or 1.0).log_softmax(-1)
                found = law.gather(1, torch.tensor(piece.tokens).unsqueeze(1)).squeeze(1)
                gap = float((found.detach() - torch.tensor(piece.logprobs)).abs().max())
                if replayed is None:
                    differs = max(differs, gap)
                else:
                    assert gap < 1e-5
    assert differs > 0.01


def test_who_asks_for_no_experts_causes_no_records(deep: Transformer) -> None:
    engine = Engine(deep, rows=3, pages=30, page_size=4)
    engine.generate([request for request in asked() if not request.experts])
    assert engine._paging and engine._paging._tables.cache.experts is None  # pyright: ignore[reportPrivateUsage]


def test_experts_of_a_model_without_moe_layers_are_refused(deep: Transformer) -> None:
    dense = Transformer(replace(deep.config, moe=replace(deep.config.moe, first_k_dense_replace=3)))
    with pytest.raises(ValueError, match="experts=True asks for the choices of MoE layers, and this model has none"):
        Engine(dense, rows=1).submit(asked(1)[0])
    (piece,) = Engine(deep, rows=1).generate([replace(asked(1)[0], experts=False)])[0]
    with pytest.raises(ValueError, match=r"ask with Request\(experts=True\)"):
        replay_of([piece])
