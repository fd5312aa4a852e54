"""The ratio test follows the target's law exactly, whatever law the drafts have."""

import math
from collections import Counter
from collections.abc import Callable
from itertools import cycle, product

import pytest
import torch
from torch import Tensor

from fathom.config import SamplingConfig
from fathom.infer import Engine, Request
from fathom.infer.pace import Pace
from fathom.infer.sampler import draw_each, invert, stream_key
from fathom.infer.verify import ACCEPT, DRAFT, RESIDUAL, Rule, chances, leading, likeliest_only, numbers, settle
from fathom.model import Transformer

DRAWS = 120_000
TARGET = torch.tensor([2.0, 1.0, 0.5, 0.0, -0.5, -1.0, -3.0, 1.5, 0.2])
PROPOSAL = torch.tensor([1.2, 1.8, -0.5, 1.0, 0.5, -1.0, 0.0, 1.1, 0.2])
Settle = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


def excess(counts: Tensor, law: Tensor) -> float:
    """Pearson's chi-square above its mean, in standard deviations; infinite where something impossible was drawn."""
    possible = law > 0
    if counts[~possible].sum():
        return math.inf
    expected = law[possible].double() / law.sum() * counts.sum()
    freedom = int(possible.sum()) - 1
    statistic = float(((counts[possible] - expected) ** 2 / expected).sum())
    return (statistic - freedom) / math.sqrt(2 * freedom)


def wrong_residual(target: Tensor, proposal: Tensor, draft: Tensor, accept: Tensor, residual: Tensor) -> Tensor:
    """The ratio test with a slip: a rejected draft is replaced by any draw from the target."""
    p, q = (law.gather(1, draft.unsqueeze(1)).squeeze(1) for law in (target, proposal))
    return torch.where((accept * q < p) & (q > 0), draft, invert(target, residual))


def settled(rule: Settle, temperature: float, top_p: float, greedy: bool = False) -> tuple[Tensor, float]:
    """How often each token came out of so many places of as many rows, and the share of drafts that were accepted."""
    key = stream_key(torch.arange(DRAWS) // 100, torch.arange(DRAWS) % 100)
    places = (torch.arange(DRAWS) % 7).unsqueeze(1)
    laws = [torch.full((DRAWS,), number) for number in (temperature, 0, top_p, 0.0)]
    p, q = (chances(logits.repeat(DRAWS, 1), *laws) for logits in (TARGET, PROPOSAL))
    q = likeliest_only(PROPOSAL.repeat(DRAWS, 1)) if greedy else q
    draft, accept, residual = (numbers(purpose, key, places).squeeze(1) for purpose in (DRAFT, ACCEPT, RESIDUAL))
    drafts = invert(q, draft)
    tokens = rule(p, q, drafts, accept, residual)
    return torch.bincount(tokens, minlength=len(TARGET)), float((tokens == drafts).double().mean())


def law_of(logits: Tensor, temperature: float, top_p: float) -> Tensor:
    """softmax(logits / temperature) cut to the fewest likeliest tokens that hold the share top_p."""
    law = (logits.double() / temperature).softmax(-1)
    order = sorted(range(len(law)), key=lambda token: -law[token].item())
    kept: list[int] = []
    while order and law[kept].sum() < top_p:
        kept.append(order.pop(0))
    left = torch.zeros_like(law)
    left[kept] = law[kept]
    return left / left.sum()


@pytest.mark.parametrize("temperature", [0.5, 0.8, 1.3])
@pytest.mark.parametrize("top_p", [0.8, 1.0])
def test_tokens_follow_the_target_and_acceptance_is_one_less_the_distance(temperature: float, top_p: float) -> None:
    p, q = (law_of(logits, temperature, top_p) for logits in (TARGET, PROPOSAL))
    counts, accepted = settled(settle, temperature, top_p)
    assert abs(excess(counts, p)) < 5
    share = float(torch.minimum(p, q).sum())
    assert 0.15 < share < 0.85
    assert accepted == pytest.approx(share, abs=5 / math.sqrt(DRAWS))


@pytest.mark.parametrize("temperature", [0.5, 0.8, 1.3])
def test_a_wrong_residual_is_found_out(temperature: float) -> None:
    assert excess(settled(wrong_residual, temperature, 0.8)[0], law_of(TARGET, temperature, 0.8)) > 20


@pytest.mark.parametrize("temperature", [0.5, 0.8, 1.3])
def test_greedy_drafts_leave_the_law_and_stand_as_often_as_the_target_says(temperature: float) -> None:
    law = law_of(TARGET, temperature, 0.95)
    counts, accepted = settled(settle, temperature, 0.95, greedy=True)
    assert abs(excess(counts, law)) < 5
    assert accepted == pytest.approx(float(law[PROPOSAL.argmax()]), abs=5 / math.sqrt(DRAWS))


def test_at_temperature_0_a_draft_stands_where_it_is_the_argmax() -> None:
    logits = torch.tensor([[0.0, 2.0, 1.0], [0.0, 2.0, 1.0]])
    p = chances(logits, torch.zeros(2), torch.zeros(2).long(), torch.ones(2), torch.zeros(2))
    q = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    number = torch.full((2,), 0.999, dtype=torch.float64)
    assert p.tolist() == [[0.0, 1.0, 0.0]] * 2
    assert settle(p, q, torch.tensor([1, 2]), number, number).tolist() == [1, 1]


def test_a_place_without_a_draft_is_drawn_from_the_target() -> None:
    p = torch.tensor([[0.25, 0.0, 0.75]]).repeat(3, 1)
    number = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)
    assert settle(p, torch.zeros(3, 3), torch.zeros(3).long(), 0 * number, number).tolist() == [0, 0, 2]


def test_equal_laws_accept_every_draft_and_survive_rounding() -> None:
    p = torch.rand(1000, 50, generator=torch.Generator().manual_seed(0)).softmax(-1)
    number = torch.full((1000,), 1 - 2.0**-53, dtype=torch.float64)
    draft = torch.arange(1000) % 50
    assert torch.equal(settle(p, p, draft, number, number), draft)
    certain = torch.tensor([[1.0 - 6e-8, 0.0], [1.0, 0.0]])  # p and q that differ by the last bit
    assert settle(certain[:1], certain[1:], torch.tensor([0]), number[:1], number[:1]).tolist() == [0]


def test_chances_are_the_law_that_the_sampler_draws_by() -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(400, 70, generator=generator) * 2
    temperature = torch.tensor([0.0, 0.6, 1.0, 1.7]).repeat(100)
    top_k, top_p = torch.tensor([0, 5, 0, 0]).repeat_interleave(100), torch.tensor([1.0, 0.8]).repeat(200)
    min_p = torch.tensor([0.0, 0.0, 0.0, 0.1]).repeat_interleave(100)
    number = torch.rand(400, generator=generator, dtype=torch.float64)
    law = chances(logits.clone(), temperature, top_k, top_p, min_p)
    drawn = draw_each(logits.clone(), number, temperature, top_k, top_p, min_p)
    assert torch.equal(invert(law, number), drawn.token)
    torch.testing.assert_close(law.sum(-1), torch.ones(400))


def test_numbers_of_several_purposes_are_strangers() -> None:
    key, places = stream_key(torch.arange(4096), torch.zeros(4096).long()), torch.arange(16).expand(4096, -1)
    a, b, c = (numbers(purpose, key, places).flatten() for purpose in (DRAFT, ACCEPT, RESIDUAL))
    for one, other in ((a, b), (b, c), (a, c)):
        cells = (one * 10).long() * 10 + (other * 10).long()
        assert abs(excess(torch.bincount(cells, minlength=100), torch.ones(100))) < 5


def test_drafts_count_up_to_the_first_that_is_rejected() -> None:
    kept = torch.tensor([[True, True, True], [True, False, True], [False, True, True]])
    assert leading(kept).tolist() == [3, 1, 0]


SAMPLES = 8_000


def joint_law(model: Transformer, prompt: list[int], temperature: float, top_p: float) -> Tensor:
    """The chance of every text of three tokens."""
    vocab = model.config.vocab_size
    law = torch.ones(1, dtype=torch.float64)
    for length in range(3):
        texts = torch.tensor([[*prompt, *text] for text in product(range(vocab), repeat=length)])
        with torch.no_grad():
            logits = model.logits(model(texts)[:, -1])
        law = (law.unsqueeze(1) * torch.stack([law_of(row, temperature, top_p) for row in logits])).flatten()
    return law


def drawn_texts(engine: Engine, vocab: int, temperature: float, top_p: float) -> Tensor:
    """How often each text of three tokens came out of the engine."""
    sampling = SamplingConfig(temperature=temperature, top_p=top_p, max_tokens=3)
    pieces = engine.generate([Request([1, 2], sampling, seed=5, stop_ids=frozenset(), n=SAMPLES)])[0]
    counts = Counter((a * vocab + b) * vocab + c for a, b, c in (piece.tokens for piece in pieces))
    return torch.tensor([counts[text] for text in range(vocab**3)])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rule", "temperature", "top_p"), [("ratio", 0.7, 0.95), ("ratio", 1.2, 0.8), ("greedy", 1.2, 0.8)]
)
def test_texts_of_three_tokens_follow_their_joint_law(
    narrow: Transformer, rule: Rule, temperature: float, top_p: float
) -> None:
    engine = Engine(narrow, rows=4000, drafts=2, verify=rule)
    assert abs(excess(drawn_texts(engine, 5, temperature, top_p), joint_law(narrow, [1, 2], temperature, top_p))) < 5
    assert 0.1 < engine.acceptance < 0.9


def test_texts_follow_their_law_where_counts_of_drafts_change(
    narrow: Transformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = cycle([2, 0, 1, 0, 2])
    monkeypatch.setattr(Pace, "choose", lambda pace, rows: next(counts))
    engine = Engine(narrow, rows=4000, drafts="auto", verify="ratio")
    assert abs(excess(drawn_texts(engine, 5, 1.2, 0.8), joint_law(narrow, [1, 2], 1.2, 0.8))) < 5
    assert 0.1 < engine.acceptance < 0.9


def test_the_joint_law_finds_a_wrong_residual_out(narrow: Transformer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fathom.infer.speculation.settle", wrong_residual)
    engine = Engine(narrow, rows=4000, drafts=2, verify="ratio")
    assert excess(drawn_texts(engine, 5, 1.2, 0.8), joint_law(narrow, [1, 2], 1.2, 0.8)) > 10
