import pytest
import torch

from fathom.config import SamplingConfig
from fathom.infer import Engine, Request, speculate_greedy
from fathom.model import Transformer

PROMPTS = ([1, 2, 3], [4], [0, 1, 2, 3, 4, 0, 1, 2, 3], [3, 3], [2, 2, 2, 2])


def drafts_of(model: Transformer, tokens: list[int]) -> list[int]:
    """For every place but the first two, the token that MTP module 0 expects there; from one pass without a cache."""
    row = torch.tensor([tokens])
    with torch.no_grad():
        states = model.predict_further(0, model(row)[:, :-1], row[:, 1:])
        return [0, 0, *model.logits(states)[0].argmax(-1).tolist()]


def count_drafts(model: Transformer, prompt: list[int], text: list[int]) -> tuple[int, int, int]:
    """Steps, drafts checked and drafts kept that lead to `text`."""
    row = [*prompt, *text]
    drafts = drafts_of(model, row)
    place, steps, checked, kept = len(prompt), 0, 0, 0
    while place < len(row) - 1:
        steps += 1
        place += 1
        if place < len(row) - 1:
            checked += 1
            if drafts[place] == row[place]:
                kept += 1
                place += 1
    return steps, checked, kept


def test_drafts_change_no_greedy_text_and_count_as_the_module_predicts(narrow: Transformer) -> None:
    report = speculate_greedy(narrow, PROMPTS, frozenset(), max_tokens=40)
    counts = [count_drafts(narrow, list(prompt), text) for prompt, text in zip(PROMPTS, report.texts, strict=True)]
    steps, checked, kept = map(sum, zip(*counts, strict=True))
    assert report.equal
    assert [len(text) for text in report.texts] == [40] * 5
    assert 0 < kept < checked
    assert report.acceptance == pytest.approx(kept / checked)
    assert report.tokens_per_step == pytest.approx(1 + kept / steps)
    assert report.seconds > 0 and report.plain_seconds > 0


def test_a_draft_behind_a_stop_id_is_not_kept(narrow: Transformer) -> None:
    for stop in range(5):
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
