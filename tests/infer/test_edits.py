import random
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from itertools import cycle, product

import pytest
import torch

from fathom.config import SamplingConfig
from fathom.infer import Engine, Forced, Piece, Request
from fathom.infer.edits import penalise
from fathom.infer.pace import Pace
from fathom.infer.sampler import stream_key, uniform
from fathom.model import Transformer

PROMPTS = ([1, 2, 3], [4], [0, 1, 2, 3, 4, 0, 1, 2, 3], [3, 3])


def definition(model: Transformer, request: Request, sample: int) -> list[int]:
    """A completion by the order of SamplingConfig: one pass over the whole row per token, one token at a time."""
    s, tokens = request.sampling, list[int]()
    key = stream_key(torch.tensor([request.seed]), torch.tensor([sample])).unsqueeze(1)
    while len(tokens) < s.max_tokens and not (tokens and tokens[-1] in request.stop_ids):
        row = [*request.prompt, *tokens]
        with torch.no_grad():
            x = model.logits(model(torch.tensor([row])))[0, -1].double()
        for token in range(len(x)):
            if token in row:
                x[token] *= 1 / s.repetition_penalty if x[token] > 0 else s.repetition_penalty
            x[token] -= s.frequency_penalty * tokens.count(token) + s.presence_penalty * (token in tokens)
            x[token] += request.logit_bias.get(token, 0.0)
        allowed = request.allow(tokens) if callable(request.allow) else request.allow
        if isinstance(allowed, torch.Tensor):
            allowed = allowed.nonzero().flatten().tolist()
        out = set(range(len(x))) - set(range(len(x)) if allowed is None else allowed)
        out |= request.stop_ids if len(tokens) < s.min_tokens else set()
        x[list(out)] = -torch.inf
        token = forced_token(request.forced, tokens)
        if token is None:
            place = torch.tensor([[len(row)]])
            token = int(x.argmax()) if s.temperature == 0 else draw(x, s, uniform(key, place).item())
        tokens.append(token)
    return tokens


def forced_token(forced: Forced | None, tokens: list[int]) -> int | None:
    if forced is None:
        return None
    if forced.since is not None:
        if forced.since not in tokens:
            return None
        tokens = tokens[tokens.index(forced.since) + 1 :]
    step = len(tokens) - forced.after
    if not 0 <= step < len(forced.tokens) or forced.unless in tokens[: forced.after]:
        return None
    return forced.tokens[step]


def draw(x: torch.Tensor, s: SamplingConfig, number: float) -> int:
    law = (x / s.temperature).softmax(-1)
    order = sorted(range(len(law)), key=lambda token: (-law[token].item(), token))
    kept = [token for token in order if law[token] >= s.min_p * law.max()]
    kept = kept[: s.top_k or None]
    total, mass, left = law[kept].sum(), 0.0, list[int]()
    for token in kept:
        if mass < s.top_p * total:
            left.append(token)
        mass += law[token]
    left.sort()
    sums = law[left].cumsum(0)
    return left[int(torch.searchsorted(sums, number * sums[-1], right=True))]


class Alternating:
    """Allows even tokens behind odd ones and any but 2 behind even ones; remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, ...]] = []

    def __call__(self, tokens: Sequence[int]) -> list[int] | torch.Tensor | None:
        self.asked.append(tuple(tokens))
        if not tokens:
            return None
        return [0, 2, 4] if tokens[-1] % 2 else torch.tensor([True, True, False, True, True])


def spell(tokens: Sequence[int]) -> str:
    return "".join(["a", "b", "ab", "ba", "cc"][token] for token in tokens)


def every_combination() -> list[Request]:
    """Requests over the 5 tokens of the narrow model: every setting with every other."""
    laws = ({"temperature": 0.0}, {"temperature": 1.1}, {"temperature": 0.9, "top_p": 0.8, "top_k": 4, "min_p": 0.05})
    penalties = ({}, {"presence_penalty": 0.7, "frequency_penalty": 0.4, "repetition_penalty": 1.3})
    waits = ({}, {"min_tokens": 6})
    masks = (None, frozenset({0, 1, 3, 4}), Alternating)
    forces = (None, Forced(tokens=(3, 1), after=4, unless=0), Forced(tokens=(2,), after=1, since=1))
    data = product(laws, penalties, waits, ({}, {1: 1.5, 3: -100.0}), masks, forces, ((), ("abb", "acc")))
    return [
        Request(
            PROMPTS[number % 4],
            SamplingConfig(max_tokens=11, **law, **penalty, **wait),
            seed=number,
            stop_ids=frozenset({4}),
            n=1 + number % 2,
            stop=stop,
            decode=spell if stop else None,
            logit_bias=bias,
            allow=mask() if mask is Alternating else mask,
            forced=force,
        )
        for number, (law, penalty, wait, bias, mask, force, stop) in enumerate(data)
    ]


def outcomes(pieces: Sequence[Sequence[Piece]]) -> list[tuple[object, ...]]:
    return [(p.request, p.sample, p.tokens, p.text, p.finish, p.stopped_by) for group in pieces for p in group]


@pytest.mark.slow
def test_drafts_change_no_text_whatever_the_settings(narrow: Transformer, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = outcomes(Engine(narrow, rows=24).generate(every_combination()))
    counts = cycle([2, 0, 1, 4, 0, 0, 3])
    monkeypatch.setattr(Pace, "choose", lambda pace, rows: next(counts))
    for drafts in (1, 3, "auto"):
        engine = Engine(narrow, rows=48, drafts=drafts)
        assert outcomes(engine.generate(every_combination())) == plain
        assert engine.tokens_per_step > 1.1


def test_drafts_are_drawn_by_the_law_that_checks_them(narrow: Transformer) -> None:
    """A model that drafts what it says itself has all drafts kept, whatever changes the logits of both."""
    model = parrot(narrow)
    for rule in ("coupled", "ratio"):
        engine = Engine(model, rows=8, drafts=3, verify=rule)
        requests = [replace(r, stop=(), decode=None) for r in every_combination() if not callable(r.allow)]
        engine.generate(requests[::3])
        assert engine.acceptance_by_position == [1.0, 1.0, 1.0]


def parrot(model: Transformer) -> Transformer:
    """The same shape with logits that depend on nothing, so that modules and model say the same."""
    model = deepcopy(model)
    with torch.no_grad():
        for norm in (model.norm, model.get_submodule("mtp.0.norm")):
            norm.weight.zero_()  # pyright: ignore[reportAttributeAccessIssue]
    return model


@pytest.mark.parametrize("drafts", [False, True])
def test_texts_are_those_of_the_definition(narrow: Transformer, drafts: bool) -> None:
    requests = [replace(request, stop=(), decode=None) for request in every_combination()]
    requests = random.Random(3).sample(requests, 60)
    for request, pieces in zip(requests, Engine(narrow, rows=7, drafts=drafts).generate(requests), strict=True):
        for piece in pieces:
            assert piece.tokens == definition(narrow, request, piece.sample)


def test_texts_of_a_larger_vocabulary_are_those_of_the_definition(latent: Transformer) -> None:
    laws = (
        SamplingConfig(max_tokens=30, presence_penalty=2.0, frequency_penalty=-0.5),
        SamplingConfig(max_tokens=30, temperature=0.0, repetition_penalty=1.5, min_tokens=30),
        SamplingConfig(max_tokens=30, min_p=0.3, top_p=0.9),
        SamplingConfig(max_tokens=30, temperature=0.7, repetition_penalty=0.5, min_tokens=12),
        SamplingConfig(max_tokens=30),
    )
    requests = [
        Request(PROMPTS[number % 4], law, seed=number, stop_ids=frozenset(range(20)), logit_bias={7: 1.0}, n=2)
        for number, law in enumerate(laws)
    ]
    for request, pieces in zip(requests, Engine(latent, rows=6).generate(requests), strict=True):
        for piece in pieces:
            assert piece.tokens == definition(latent, request, piece.sample)
            assert len(piece.tokens) > request.sampling.min_tokens or piece.finish == "length"


@pytest.mark.parametrize("drafts", [0, 1, 3])
def test_a_mask_is_asked_once_for_every_prefix(narrow: Transformer, drafts: int) -> None:
    mask = Alternating()
    sampling = SamplingConfig(max_tokens=30, min_tokens=8)
    request = Request([1, 2], sampling, seed=2, stop_ids=frozenset({4}), allow=mask)
    (piece,) = Engine(narrow, rows=1, drafts=drafts).generate([request])[0]
    assert len(piece.tokens) > 5
    assert mask.asked == [tuple(piece.tokens[:count]) for count in range(len(piece.tokens))]


def test_rows_without_settings_draw_what_they_drew_beside_those_with(narrow: Transformer) -> None:
    plain = Request([1, 2], SamplingConfig(max_tokens=40), seed=9, stop_ids=frozenset(), n=3)
    (alone,) = Engine(narrow, rows=8).generate([plain])
    crowd = Engine(narrow, rows=8).generate([*every_combination()[::9], plain])[-1]
    assert [(piece.tokens, piece.logprobs) for piece in crowd] == [
        (piece.tokens, pytest.approx(piece.logprobs, abs=1e-5)) for piece in alone
    ]


def test_logprobs_know_nothing_of_settings(latent: Transformer) -> None:
    sampling = SamplingConfig(temperature=0.8, max_tokens=12, frequency_penalty=2.0, top_k=3, min_tokens=4)
    forced = Forced(tokens=(39, 38), after=3)
    request = Request([1, 2], sampling, 0, frozenset({5}), logit_bias={5: 90.0, 6: -90.0}, forced=forced)
    (piece,) = Engine(latent, rows=1).generate([request])[0]
    with torch.no_grad():
        logits = latent.logits(latent(torch.tensor([[1, 2, *piece.tokens[:-1]]])))[0, 1:]
    law = (logits / 0.8).log_softmax(-1)
    assert piece.tokens[3:] == [39, 38, 5] and piece.finish == "stop"
    assert piece.logprobs == pytest.approx(law[range(6), torch.tensor(piece.tokens)].tolist(), abs=1e-5)


def test_penalties_follow_their_formulas() -> None:
    logits = torch.tensor([[2.0, -1.0, 0.5, 3.0]])
    drawn, read = torch.tensor([[0, 1, 3, 0]]), torch.tensor([[True, True, False, False]])
    presence, frequency, repetition = (torch.tensor([[number]]) for number in (0.25, 0.5, 2.0))
    found = penalise(logits, drawn, read, presence, frequency, repetition)
    assert found.tolist() == [[1.0, -2.0 - 0.75, 0.25 - 1.75, 3.0]]


def test_a_thinking_budget_closes_thinking_that_runs_on(narrow: Transformer) -> None:
    budget = Forced(tokens=(3,), after=3, unless=3)
    request = Request([1], SamplingConfig(max_tokens=12), 0, frozenset(), n=24, forced=budget)
    free = Engine(narrow, rows=24).generate([replace(request, forced=None)])[0]
    bound = Engine(narrow, rows=24, drafts=True).generate([request])[0]
    assert 0 < sum(3 in piece.tokens[:3] for piece in free) < 24
    for piece, other in zip(bound, free, strict=True):
        assert piece.tokens[:3] == other.tokens[:3]
        assert piece.tokens == other.tokens if 3 in other.tokens[:3] else piece.tokens[3] == 3


def raises(tokens: Sequence[int]) -> None:
    if len(tokens) == 5:
        raise KeyError("no such state")


@pytest.mark.parametrize(
    ("allow", "error"),
    [
        (raises, "KeyError: 'no such state'"),
        (lambda tokens: None if len(tokens) < 5 else [], "ValueError: no token is left to draw"),
        (lambda tokens: None if len(tokens) < 5 else [4], "ValueError: no token is left to draw"),
        (lambda tokens: None if len(tokens) < 5 else [9], "ValueError: allow gave token id 9"),
        (lambda tokens: None if len(tokens) < 5 else torch.ones(5), "ValueError: allow gave a tensor"),
    ],
)
@pytest.mark.parametrize("drafts", [0, 1, 3])
def test_a_mask_that_fails_ends_its_request_alone(narrow: Transformer, allow: object, error: str, drafts: int) -> None:
    sampling = SamplingConfig(max_tokens=20, min_tokens=20)
    good = [Request([1, 2], sampling, seed, frozenset({4})) for seed in range(3)]
    bad = [Request([3], sampling, seed, frozenset({4}), allow=allow, n=2) for seed in range(3)]
    engine = Engine(narrow, rows=12, drafts=drafts)
    expected = outcomes(engine.generate([*good, *(replace(request, allow=None) for request in bad)]))
    found = engine.generate([*good, *bad])
    assert [o[2:] for o in outcomes(found[:3])] == [o[2:] for o in expected[:3]]
    for piece, whole in zip((piece for group in found[3:] for piece in group), expected[3:], strict=True):
        assert piece.finish == "error" and piece.error and piece.error.startswith(error)
        assert piece.tokens == whole[2][:5] and len(piece.logprobs) == 5
    assert not engine.busy


def test_a_failing_mask_hands_out_no_token_behind_the_failure_when_streamed(narrow: Transformer) -> None:
    for drafts in (False, True):
        engine = Engine(narrow, rows=1, drafts=drafts)
        pieces = list(engine.stream(Request([3], SamplingConfig(max_tokens=20), 1, frozenset(), allow=raises)))
        assert sum(len(piece.tokens) for piece in pieces) == 5
        assert [piece.finish for piece in pieces] == [None] * (len(pieces) - 1) + ["error"]
