from dataclasses import replace

import pytest
import torch

from fathom.config import SamplingConfig
from fathom.infer import Engine, Request, speculate_greedy
from fathom.model import Transformer

GREEDY = SamplingConfig(temperature=0.0)
PROMPTS = ([1, 2, 3], [4], [0, 1, 2, 3, 4, 0, 1, 2, 3], [3, 3], [2, 2, 2, 2])


def expected_pieces(model: Transformer, prompt: list[int], text: list[int]) -> list[int]:
    """Tokens that every step adds to `text`, by what MTP module 0 says in one pass without a cache."""
    row = [*prompt, *text]
    tokens = torch.tensor([row])
    with torch.no_grad():
        states = model.predict_further(0, model(tokens)[:, :-1], tokens[:, 1:])
        drafts = [-1, -1, *model.logits(states)[0].argmax(-1).tolist()]  # of the token at each place
    place, pieces = len(prompt), [1]
    while place < len(row) - 1:
        kept = place + 2 < len(row) and drafts[place + 1] == row[place + 1]
        pieces.append(1 + kept)
        place += pieces[-1]
    return pieces


def test_the_drafts_are_those_of_the_module_over_the_whole_row(narrow: Transformer) -> None:
    generator = torch.Generator().manual_seed(0)
    engine = Engine(narrow, rows=1, drafts=True)
    for length in (1, 2, 30, 40, 50):
        prompt = torch.randint(5, (length,), generator=generator).tolist()
        pieces = list(engine.stream(Request(prompt, replace(GREEDY, max_tokens=60), 0, frozenset())))
        text = [token for piece in pieces for token in piece.tokens]
        assert [len(piece.tokens) for piece in pieces] == expected_pieces(narrow, prompt, text)


def test_drafts_change_no_greedy_text_and_are_counted(narrow: Transformer) -> None:
    report = speculate_greedy(narrow, PROMPTS, frozenset(), max_tokens=40)
    rows = [expected_pieces(narrow, *row) for row in zip(PROMPTS, report.texts, strict=True)]
    steps = [step for pieces in rows for step in pieces[1:]]
    kept, unchecked = steps.count(2), sum(pieces[-1] == 1 for pieces in rows)
    assert report.equal
    assert [len(text) for text in report.texts] == [40] * 5
    assert 0 < kept < len(steps)
    assert report.tokens_per_step == pytest.approx(1 + kept / len(steps))
    assert report.acceptance == pytest.approx(kept / (len(steps) - unchecked))
    assert report.seconds > 0 and report.plain_seconds > 0


def test_a_draft_behind_a_stop_id_is_not_kept(narrow: Transformer) -> None:
    for stop in (0, 2, 4):
        report = speculate_greedy(narrow, PROMPTS, frozenset({stop}), max_tokens=30, rows=2)
        assert report.equal
        assert all(stop not in text[:-1] for text in report.texts)


@pytest.mark.parametrize("max_tokens", [1, 2, 3, 25])
def test_drafts_change_no_sampled_text(narrow: Transformer, max_tokens: int) -> None:
    laws = (
        SamplingConfig(temperature=1.0, max_tokens=max_tokens),
        SamplingConfig(temperature=0.6, max_tokens=max_tokens),
        SamplingConfig(temperature=0.0, max_tokens=max_tokens),
        SamplingConfig(temperature=1.0, top_p=0.7, max_tokens=max_tokens),
        SamplingConfig(temperature=1.2, top_k=3, max_tokens=max_tokens),
    )
    requests = [
        Request(prompt, law, seed=number, stop_ids=frozenset({4}), n=4)
        for number, (prompt, law) in enumerate(zip(PROMPTS, laws, strict=True))
    ]
    plain = Engine(narrow, rows=7, capacity=9 + max_tokens).generate(requests)
    engine = Engine(narrow, rows=7, capacity=9 + max_tokens, drafts=True)
    for drafted, expected in zip(engine.generate(requests), plain, strict=True):
        for piece, other in zip(drafted, expected, strict=True):
            assert (piece.tokens, piece.finish) == (other.tokens, other.finish)
            assert piece.logprobs == pytest.approx(other.logprobs, abs=1e-5)
    assert engine.tokens_per_step > 1 or max_tokens < 25


def test_no_prompts_give_no_texts(narrow: Transformer) -> None:
    assert speculate_greedy(narrow, [], frozenset(), max_tokens=4).texts == []
