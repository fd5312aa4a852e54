import math
from copy import deepcopy
from dataclasses import replace
from itertools import groupby

import pytest
import torch

from fathom.config import SamplingConfig
from fathom.infer import Engine, Piece, Request
from fathom.kernels.cross_entropy import token_logprobs
from fathom.model import Transformer

GREEDY = SamplingConfig(temperature=0.0, max_tokens=16)
PROMPTS = ([1, 2, 3], [4], [5, 6, 7, 8, 9, 10, 11, 12, 13], [14, 15], [2, 2, 2, 2, 2, 2])


def of_each_kind() -> list[Request]:
    """Requests that differ in prompt, length, temperature, truncation, stop ids and number of samples."""
    laws = (
        SamplingConfig(temperature=1.0, max_tokens=9),
        GREEDY,
        SamplingConfig(temperature=0.7, max_tokens=20),
        SamplingConfig(temperature=1.3, top_k=5, max_tokens=12),
        SamplingConfig(temperature=1.0, top_p=0.8, max_tokens=14),
    )
    return [
        Request(prompt, law, seed=100 + number, stop_ids=frozenset({7, 30 + number}), n=1 + number % 3)
        for number, (prompt, law) in enumerate(zip(PROMPTS, laws, strict=True))
    ]


def texts(pieces: list[Piece]) -> list[list[int]]:
    return [piece.tokens for piece in pieces]


def logits_of(model: Transformer, tokens: list[int]) -> torch.Tensor:
    """Logits behind every token of a row, from one pass without a cache."""
    with torch.no_grad():
        return model.logits(model(torch.tensor([tokens])))[0]


def test_greedy_text_is_the_argmax_of_a_full_pass_at_every_step(model: Transformer) -> None:
    requests = [Request(prompt, GREEDY, seed=0, stop_ids=frozenset()) for prompt in PROMPTS]
    for prompt, (piece,) in zip(PROMPTS, Engine(model, rows=8).generate(requests), strict=True):
        row = list(prompt)
        for token in piece.tokens:
            assert token == int(logits_of(model, row)[-1].argmax())
            row.append(token)


def test_a_request_draws_the_same_text_alone_in_a_crowd_and_in_any_order(model: Transformer) -> None:
    requests = of_each_kind()
    alone = [texts(Engine(model, rows=3).generate([request])[0]) for request in requests]
    crowd = Engine(model, rows=16).generate(requests)
    backwards = Engine(model, rows=16).generate(requests[::-1])[::-1]
    assert list(map(texts, crowd)) == alone
    assert list(map(texts, backwards)) == alone
    assert len({tuple(text) for text in alone[2]}) == 3  # samples of one request differ


@pytest.mark.parametrize("rows", [1, 5])
def test_requests_that_wait_for_rows_draw_the_same_texts(model: Transformer, rows: int) -> None:
    requests = [replace(request, seed=seed) for seed in range(3) for request in of_each_kind()]
    alone = [Engine(model, rows=8).generate([request])[0] for request in requests]
    for pieces, expected in zip(Engine(model, rows).generate(requests), alone, strict=True):
        assert texts(pieces) == texts(expected)
        assert [piece.sample for piece in pieces] == list(range(len(pieces)))
        for piece, other in zip(pieces, expected, strict=True):
            assert piece.finish == other.finish
            assert piece.logprobs == pytest.approx(other.logprobs, abs=1e-5)


def test_a_row_is_not_touched_by_those_that_finish_beside_it(latent: Transformer) -> None:
    engine = Engine(latent, rows=8)
    long = Request([9, 8, 7], SamplingConfig(temperature=1.0, max_tokens=40), seed=5, stop_ids=frozenset())
    brief = [
        Request([3, number], SamplingConfig(max_tokens=1 + number), seed=1, stop_ids=frozenset()) for number in range(7)
    ]
    *others, last = engine.generate([*brief, long])
    assert [len(pieces[0].tokens) for pieces in others] == [1, 2, 3, 4, 5, 6, 7]
    assert texts(last) == texts(engine.generate([long])[0])


def test_samples_share_one_pass_over_the_prompt(latent: Transformer) -> None:
    shapes: list[torch.Size] = []
    hook = latent.embedding.register_forward_pre_hook(lambda _, inputs: shapes.append(inputs[0].shape))
    request = Request([1, 2, 3, 4], SamplingConfig(max_tokens=3), seed=0, stop_ids=frozenset(), n=6)
    pieces = Engine(latent, rows=6).generate([request])[0]
    hook.remove()
    assert shapes == [(1, 4), (6, 1), (6, 1)]
    assert texts(pieces)[:4] == texts(Engine(latent, rows=6).generate([replace(request, n=4)])[0])


def test_a_request_may_have_more_samples_than_there_are_rows(latent: Transformer) -> None:
    request = Request([1, 2], SamplingConfig(max_tokens=5), seed=0, stop_ids=frozenset(), n=7)
    assert texts(Engine(latent, rows=3).generate([request])[0]) == texts(Engine(latent, rows=9).generate([request])[0])


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
def test_logprobs_are_those_of_a_training_pass(model: Transformer, temperature: float) -> None:
    sampling = SamplingConfig(temperature=temperature, max_tokens=24)
    requests = [Request(prompt, sampling, seed=1, stop_ids=frozenset(), n=2) for prompt in PROMPTS]
    for prompt, pieces in zip(PROMPTS, Engine(model, rows=10).generate(requests), strict=True):
        for piece in pieces:
            row = torch.tensor([[*prompt, *piece.tokens]])
            hidden = model(row[:, :-1])[0, len(prompt) - 1 :]
            targets = torch.tensor(piece.tokens)
            expected = token_logprobs(hidden, model.head_weight, targets, temperature or 1.0).logprob
            assert torch.tensor(piece.logprobs) == pytest.approx(expected.detach(), abs=1e-5)


def test_logprobs_of_truncated_draws_are_those_of_the_whole_law(latent: Transformer) -> None:
    sampling = SamplingConfig(temperature=0.8, top_k=2, top_p=0.9, max_tokens=20)
    (piece,) = Engine(latent, rows=1).generate([Request([1, 2, 3], sampling, seed=4, stop_ids=frozenset())])[0]
    logits = logits_of(latent, [1, 2, 3, *piece.tokens])[2:-1]
    chosen = torch.tensor(piece.tokens)
    assert piece.logprobs == pytest.approx((logits / 0.8).log_softmax(-1)[range(20), chosen].tolist(), abs=1e-5)
    assert all(token in best for token, best in zip(piece.tokens, logits.topk(2).indices.tolist(), strict=True))


def test_a_text_ends_at_its_first_stop_id_which_belongs_to_it(latent: Transformer) -> None:
    endless = Request([1, 2, 3], SamplingConfig(max_tokens=60), seed=2, stop_ids=frozenset())
    (whole,) = Engine(latent, rows=1).generate([endless])[0]
    assert (len(whole.tokens), whole.finish) == (60, "length")
    stop_ids = frozenset(whole.tokens[20:22])
    first = min(whole.tokens.index(stop) for stop in stop_ids)
    (piece,) = Engine(latent, rows=1).generate([replace(endless, stop_ids=stop_ids)])[0]
    assert (piece.tokens, piece.finish) == (whole.tokens[: first + 1], "stop")
    assert len(piece.logprobs) == len(piece.tokens)


def test_the_last_token_that_is_allowed_may_be_a_stop(latent: Transformer) -> None:
    request = Request([1, 2, 3], SamplingConfig(max_tokens=1), seed=2, stop_ids=frozenset())
    (piece,) = Engine(latent, rows=1).generate([request])[0]
    assert piece.finish == "length"
    (piece,) = Engine(latent, rows=1).generate([replace(request, stop_ids=frozenset(piece.tokens))])[0]
    assert piece.finish == "stop"


@pytest.mark.parametrize("drafts", [False, True])
def test_streamed_pieces_add_up_to_the_text(narrow: Transformer, drafts: bool) -> None:
    engine = Engine(narrow, rows=4, drafts=drafts)
    request = Request([1, 2, 3], SamplingConfig(max_tokens=30), seed=6, stop_ids=frozenset({4}), n=3)
    pieces = list(engine.stream(request))
    assert max(len(piece.tokens) for piece in pieces) == (2 if drafts else 1)
    for whole in engine.generate([request])[0]:
        mine = [piece for piece in pieces if piece.sample == whole.sample]
        assert [token for piece in mine for token in piece.tokens] == whole.tokens
        assert [number for piece in mine for number in piece.logprobs] == pytest.approx(whole.logprobs, abs=1e-5)
        assert [piece.finish for piece in mine] == [None] * (len(mine) - 1) + [whole.finish]


def test_streams_that_are_looked_at_now_and_then_hand_out_the_same(model: Transformer) -> None:
    [request] = [Request([1, 2], SamplingConfig(max_tokens=12), seed=3, stop_ids=frozenset())]
    often, seldom = list(Engine(model, rows=2).stream(request)), list(Engine(model, 2, stream_s=1e6).stream(request))
    assert len(often) == 12
    assert len(seldom) <= 2  # the first look, and the end
    handed_out = ([token for piece in pieces for token in piece.tokens] for pieces in (seldom, often))
    assert len({tuple(tokens) for tokens in handed_out}) == 1


def test_a_given_text_is_scored_as_in_training(model: Transformer) -> None:
    text = [5, 6, 7, 8, 9]
    found = Engine(model, rows=1).score(text, likeliest=3)
    wanted = logits_of(model, text).log_softmax(-1)[:-1]
    assert found.logprobs == pytest.approx([float(row[token]) for row, token in zip(wanted, text[1:], strict=True)])
    assert [[token for token, _ in best] for best in found.top] == wanted.topk(3).indices.tolist()
    assert Engine(model, rows=1).score([5]) == ([], [])


@pytest.mark.parametrize("pages", [0, 40])
def test_seconds_of_waiting_and_reading_are_told(model: Transformer, pages: int) -> None:
    law = SamplingConfig(max_tokens=8)
    engine = Engine(model, rows=1, capacity=32, pages=pages, page_size=4)
    asked = [Request(prompt, law, seed=0, stop_ids=frozenset()) for prompt in PROMPTS[:3]]
    times = [piece.timing for [piece] in engine.generate(asked)]
    assert all(each.read > 0 for each in times)
    assert times[0].waited < times[1].waited < times[2].waited  # one row: each waits for those before it


def test_streamed_and_whole_requests_share_the_rows(latent: Transformer) -> None:
    engine = Engine(latent, rows=4)
    requests = of_each_kind()
    expected = list(map(texts, engine.generate(requests)))
    ids = [engine.submit(request, stream=number % 2 == 0) for number, request in enumerate(requests)]
    pieces: list[Piece] = []
    while engine.busy:
        pieces += engine.step()
    pieces.sort(key=lambda piece: (piece.request, piece.sample))
    for number, request in enumerate(ids):
        mine = [list(group) for _, group in groupby((p for p in pieces if p.request == request), lambda p: p.sample)]
        assert [[token for piece in group for token in piece.tokens] for group in mine] == expected[number]
        assert all(len(group) == 1 for group in mine) or number % 2 == 0


def test_a_closed_stream_leaves_the_engine_as_new(latent: Transformer) -> None:
    engine = Engine(latent, rows=2, capacity=24)
    request = Request([1, 2, 3], SamplingConfig(max_tokens=21), seed=1, stop_ids=frozenset())
    stream = engine.stream(request)
    begun = [next(stream).tokens[0] for _ in range(15)]
    with pytest.raises(ValueError, match="1 requests are in flight"):
        engine.generate([request])
    stream.close()
    assert not engine.busy and engine.step() == []
    assert engine.generate([request])[0][0].tokens[:15] == begun


def test_rows_grow_with_what_is_asked(latent: Transformer) -> None:
    request = Request([1] * 40, SamplingConfig(max_tokens=80), seed=1, stop_ids=frozenset({0, 1, 2}))
    early = Request([1, 2], SamplingConfig(max_tokens=30), seed=1, stop_ids=frozenset())
    engine = Engine(latent, rows=2)
    engine.submit(early)
    pieces = engine.step() + engine.step()
    engine.submit(request)  # the cache and the buffers grow under a row that is being decoded
    while engine.busy:
        pieces += engine.step()
    fixed = Engine(latent, rows=2, capacity=120)
    assert {tuple(piece.tokens) for piece in pieces} == {
        tuple(fixed.generate([each])[0][0].tokens) for each in (early, request)
    }


def test_changed_weights_are_used(latent: Transformer) -> None:
    model = deepcopy(latent)
    engine, request = Engine(model, rows=1), Request([1, 2, 3], GREEDY, seed=0, stop_ids=frozenset())
    assert texts(engine.generate([request])[0]) == texts(Engine(latent, rows=1).generate([request])[0])
    with torch.no_grad():
        model.head.weight.neg_()
    assert texts(engine.generate([request])[0]) == texts(Engine(model, rows=1).generate([request])[0])
    assert texts(engine.generate([request])[0]) != texts(Engine(latent, rows=1).generate([request])[0])


@pytest.mark.parametrize("sampling", [GREEDY, SamplingConfig(), SamplingConfig(top_k=3)])
def test_weights_that_diverged_are_named(latent: Transformer, sampling: SamplingConfig) -> None:
    model = deepcopy(latent)
    with torch.no_grad():
        model.norm.weight.fill_(math.nan)
    with pytest.raises(RuntimeError, match="not finite"):
        Engine(model, rows=1).generate([Request([1, 2, 3], sampling, seed=0, stop_ids=frozenset())])


@pytest.mark.parametrize(
    ("prompt", "max_tokens", "stop_ids", "message"),
    [
        ([], 4, set(), "the prompt is empty"),
        ([1, 40], 4, set(), "prompt holds token id 40, outside the model's vocabulary of 40"),
        ([-1], 4, set(), "prompt holds token id -1"),
        ([1], 4, {99}, "stop_ids holds token id 99"),
        ([1] * 33, 4, set(), "a prompt of 33 tokens and max_tokens=4 need 37 places, but a row holds 32"),
        ([1] * 3, 30, set(), "a prompt of 3 tokens and max_tokens=30 need 33 places, but a row holds 32"),
    ],
)
def test_requests_that_cannot_be_served_are_refused(
    latent: Transformer, prompt: list[int], max_tokens: int, stop_ids: set[int], message: str
) -> None:
    engine = Engine(latent, rows=2, capacity=32)
    good = Request([1, 2], SamplingConfig(max_tokens=30), seed=0, stop_ids=frozenset())
    with pytest.raises(ValueError, match=message):
        engine.generate([good, Request(prompt, SamplingConfig(max_tokens=max_tokens), 0, frozenset(stop_ids))])
    assert not engine.busy
    assert len(engine.generate([good])[0][0].tokens) == 30


def test_engines_that_cannot_be_are_refused(latent: Transformer) -> None:
    with pytest.raises(ValueError, match="rows=0"):
        Engine(latent, rows=0)
    with pytest.raises(ValueError, match=r"capacity=500 is outside 2\.\.128"):
        Engine(latent, rows=1, capacity=500)
    with pytest.raises(ValueError, match="n=0"):
        Request([1], GREEDY, seed=0, stop_ids=frozenset(), n=0)
    with pytest.raises(ValueError, match="num_nextn_predict_layers=0"):
        Engine(Transformer(replace(latent.config, num_nextn_predict_layers=0)), rows=1, drafts=True)
