from dataclasses import replace

import pytest
import torch

from fathom.config import SamplingConfig
from fathom.infer import Engine, Request
from fathom.model import Transformer

PROMPTS = ([1, 2, 3], [4], [0, 1, 2, 3, 4, 0, 1, 2, 3], [3, 3], [2, 2, 2, 2])


@pytest.mark.parametrize("drafts", [0, 1, 3])
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_traces_are_those_of_a_full_pass(narrow: Transformer, drafts: int, temperature: float) -> None:
    requests = [
        Request(
            prompt,
            SamplingConfig(temperature=temperature, max_tokens=9 + number, top_k=4, presence_penalty=number % 2 * 0.5),
            seed=number,
            stop_ids=frozenset({4}),
            n=2,
            top_logprobs=number,
            details=number != 2,
        )
        for number, prompt in enumerate(PROMPTS)
    ]
    for request, pieces in zip(requests, Engine(narrow, rows=4, drafts=drafts).generate(requests), strict=True):
        for piece in pieces:
            with torch.no_grad():
                hidden = narrow(torch.tensor([[*request.prompt, *piece.tokens[:-1]]]))[0, len(request.prompt) - 1 :]
                law = (narrow.logits(hidden) / (temperature or 1.0)).log_softmax(-1)
            assert piece.logprobs == pytest.approx(law[range(len(law)), torch.tensor(piece.tokens)].tolist(), abs=1e-5)
            assert (piece.top_logprobs is None) == (request.top_logprobs == 0)
            for row, best in zip(law, piece.top_logprobs or [], strict=bool(piece.top_logprobs)):
                values, tokens = row.topk(request.top_logprobs)
                assert [token for token, _ in best] == tokens.tolist()
                assert [value for _, value in best] == pytest.approx(values.tolist(), abs=1e-5)
            assert (piece.details is None) == (not request.details)
            if piece.details:
                assert piece.details.entropy == pytest.approx((-(law.exp() * law).sum(-1)).tolist(), abs=1e-5)
                assert piece.details.version == [0] * len(piece.tokens)
                assert drafts or not any(piece.details.drafted)


def test_streamed_traces_add_up(narrow: Transformer) -> None:
    request = Request([1, 2, 3], SamplingConfig(max_tokens=30), 6, frozenset({4}), n=3, top_logprobs=2, details=True)
    engine = Engine(narrow, rows=4, drafts=True)
    pieces = list(engine.stream(request))
    for whole in engine.generate([request])[0]:
        mine = [piece for piece in pieces if piece.sample == whole.sample]
        assert whole.details and whole.top_logprobs and all(piece.details and piece.top_logprobs for piece in mine)
        for name in ("version", "drafted", "accepted"):
            assert [x for piece in mine for x in getattr(piece.details, name)] == getattr(whole.details, name)
        assert [token for p in mine for best in p.top_logprobs or [] for token, _ in best] == [
            token for best in whole.top_logprobs for token, _ in best
        ]


def test_drafts_are_counted_token_by_token(narrow: Transformer) -> None:
    requests = [
        Request(prompt, SamplingConfig(max_tokens=30), number, frozenset({4}), n=3, details=True)
        for number, prompt in enumerate(PROMPTS)
    ]
    engine = Engine(narrow, rows=6, drafts=True)
    details = [piece.details for pieces in engine.generate(requests) for piece in pieces if piece.details]
    drafted, accepted = (sum(sum(getattr(each, name)) for each in details) for name in ("drafted", "accepted"))
    assert 0 < accepted < drafted
    assert engine.acceptance == pytest.approx(accepted / drafted)
    for each in details:
        assert not each.drafted[0]  # drawn from the prompt
        for place, kept in enumerate(each.accepted):
            if kept:  # then the next token came along, in whose place there was no draft
                assert each.drafted[place] and not each.drafted[place + 1]


def test_rows_that_ask_for_nothing_are_as_they_were(narrow: Transformer) -> None:
    plain = Request([1, 2], SamplingConfig(max_tokens=40), seed=9, stop_ids=frozenset(), n=3)
    curious = Request([3], SamplingConfig(max_tokens=5), seed=9, stop_ids=frozenset(), top_logprobs=5, details=True)
    (alone,) = Engine(narrow, rows=4).generate([plain])
    for piece, other in zip(Engine(narrow, rows=4).generate([plain, curious])[0], alone, strict=True):
        assert replace(piece, logprobs=[]) == replace(other, logprobs=[])
        assert piece.logprobs == pytest.approx(other.logprobs, abs=1e-5)


@pytest.mark.parametrize("drafts", [False, True])
def test_rows_without_traces_may_be_longer_than_those_with(narrow: Transformer, drafts: bool) -> None:
    brief = Request([1, 2, 3], SamplingConfig(max_tokens=4), 0, frozenset(), details=True)
    long = Request([1, 2], SamplingConfig(max_tokens=30), 1, frozenset(), stop=("x",), decode=lambda tokens: "a")
    alone = [Engine(narrow, rows=1).generate([request])[0][0].tokens for request in (brief, long)]
    together = Engine(narrow, rows=2, drafts=drafts).generate([brief, long])
    assert [pieces[0].tokens for pieces in together] == alone
