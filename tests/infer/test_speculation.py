"""Drafts of length k are those of the definition, and change no text."""

import random
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from itertools import count

import pytest
import torch
from torch import Tensor

from fathom.config import SamplingConfig
from fathom.infer import Engine, Request
from fathom.infer.check import check_drafts
from fathom.infer.pace import Pace
from fathom.model import Transformer

GREEDY = SamplingConfig(temperature=0.0, max_tokens=40)
PROMPTS = ([1, 2, 3], [4], [0, 1, 2, 3, 4, 0, 1, 2, 3], [3, 3], [2, 2, 2, 2])


@pytest.fixture(scope="module", params=[1, 2])
def drafting(request: pytest.FixtureRequest, narrow: Transformer) -> Transformer:
    """The narrow model with one MTP module or two."""
    if request.param == 1:
        return narrow
    model = Transformer(replace(narrow.config, num_nextn_predict_layers=2))
    model.initialise(torch.Generator().manual_seed(14))
    model.load_state_dict(narrow.state_dict(), strict=False)
    for parameter in model.get_submodule("mtp.1.block.attention").parameters():
        parameter.data *= 4
    return model


def scripted(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """Let counts of drafts follow a fixed, uneven order, with stretches of none."""
    rng = random.Random(seed)
    monkeypatch.setattr(Pace, "choose", lambda pace, rows: rng.choice((0, 0, 1, 2, 3, 4)))


def defined_drafts(model: Transformer, row: list[int], drafts: int) -> list[int]:
    """Greedy drafts behind `row`, by passes over the whole row without a cache."""
    found: list[int] = []
    with torch.no_grad():
        states = model(torch.tensor([row[:-1]]))
        inputs, tokens = states, row[1:]
        for draft in range(drafts):
            module = min(draft, len(model.mtp) - 1)
            if draft < len(model.mtp):  # the states of the module before, one token further on
                inputs, tokens = states, [*row[1 + draft :], *found]
            else:  # one place more, with the module's own last state
                inputs, tokens = torch.cat((inputs, states[:, -1:]), dim=1), [*tokens, found[-1]]
            states = model.predict_further(module, inputs, torch.tensor([tokens]))
            found.append(int(model.logits(states)[0, -1].argmax()))
    return found


def defined_pieces(model: Transformer, prompt: list[int], text: list[int], counts: Iterator[int]) -> list[int]:
    """Tokens that every step adds to `text`, with so many drafts in one step after the other."""
    pieces, drawn = [1], 1
    while drawn < len(text):
        drafts = defined_drafts(model, [*prompt, *text[:drawn]], next(counts))
        kept = 0
        while kept < len(drafts) and drawn + kept + 1 < len(text) and drafts[kept] == text[drawn + kept]:
            kept += 1
        pieces.append(kept + 1)
        drawn += kept + 1
    return pieces


def pieces_of(engine: Engine, prompt: list[int]) -> tuple[list[int], list[int]]:
    pieces = list(engine.stream(Request(prompt, GREEDY, 0, frozenset())))
    return [len(piece.tokens) for piece in pieces], [token for piece in pieces for token in piece.tokens]


@pytest.mark.parametrize("drafts", [3, *(pytest.param(k, marks=pytest.mark.slow) for k in (1, 2, 4, 6))])
def test_drafts_are_those_of_the_modules_over_the_whole_row(drafting: Transformer, drafts: int) -> None:
    engine, generator = Engine(drafting, rows=1, drafts=drafts), torch.Generator().manual_seed(0)
    for length in (1, 2, 3, 30):
        prompt = torch.randint(5, (length,), generator=generator).tolist()
        sizes, text = pieces_of(engine, prompt)
        assert sizes == defined_pieces(drafting, prompt, text, iter(lambda: drafts, None))
        assert max(sizes) > 1
    assert len(engine.acceptance_by_position) <= drafts
    assert all(share > 0.02 for share in engine.acceptance_by_position[:2])


@pytest.mark.slow
def test_modules_read_what_they_missed_while_there_were_no_drafts(
    drafting: Transformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, prompt in enumerate(PROMPTS):
        scripted(monkeypatch, number)
        sizes, text = pieces_of(Engine(drafting, rows=1, drafts="auto"), prompt)
        rng = random.Random(number)
        counts = (rng.choice((0, 0, 1, 2, 3, 4)) for _ in count())
        assert sizes == defined_pieces(drafting, prompt, text, counts)


def varied() -> list[Request]:
    laws = (
        SamplingConfig(max_tokens=25),
        SamplingConfig(temperature=0.6, top_p=0.8, max_tokens=30),
        SamplingConfig(temperature=0.0, max_tokens=21),
        SamplingConfig(top_p=0.7, max_tokens=2),
        SamplingConfig(temperature=1.2, top_k=3, max_tokens=1),
        SamplingConfig(temperature=0.0, max_tokens=33),
    )
    return [
        Request(PROMPTS[number % 5], law, seed=number, stop_ids=frozenset({4}), n=3) for number, law in enumerate(laws)
    ]


@pytest.mark.parametrize("drafts", [0, 1, 2, 3, 4, 8, "auto", "scripted"])
def test_no_count_of_drafts_changes_a_text(
    drafting: Transformer, drafts: int | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Engine(drafting, rows=5, capacity=45).generate(varied())
    if drafts == "scripted":
        scripted(monkeypatch, 3)
    engine = Engine(drafting, rows=5, capacity=45, drafts="auto" if isinstance(drafts, str) else drafts)
    for pieces, expected in zip(engine.generate(varied()), plain, strict=True):
        for piece, other in zip(pieces, expected, strict=True):
            assert (piece.tokens, piece.finish) == (other.tokens, other.finish)
            assert piece.logprobs == pytest.approx(other.logprobs, abs=1e-5)
    assert engine.tokens_per_step > 1.1 or drafts in (0, "auto")


@pytest.mark.slow
def test_rows_that_end_at_the_last_place_of_the_cache_are_drafted_for(drafting: Transformer) -> None:
    request = Request([1, 2, 3], replace(GREEDY, max_tokens=125), 0, frozenset(), n=2)  # the context is 128
    plain = Engine(drafting, rows=2).generate([request])[0]
    for drafts in (1, 5):
        pieces = Engine(drafting, rows=2, drafts=drafts).generate([request])[0]
        assert [piece.tokens for piece in pieces] == [piece.tokens for piece in plain]


@pytest.mark.parametrize("drafts", [3, "auto"])
def test_drafts_outlive_a_change_of_weights(
    drafting: Transformer, drafts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind it, drafts are the new weights' own over the whole row."""
    scripted(monkeypatch, 1)
    new = Transformer(drafting.config)
    new.initialise(torch.Generator().manual_seed(1))
    engine = Engine(deepcopy(drafting), rows=1, drafts=drafts)
    engine.submit(Request([1, 2, 3], GREEDY, 0, frozenset()), stream=True)
    before = [token for _ in range(5) for piece in engine.step() for token in piece.tokens]
    engine.swap_weights(new.state_dict(), in_flight="recompute")
    sizes, text = list[int](), list[int]()
    while engine.busy:
        for piece in engine.step():
            sizes.append(len(piece.tokens))
            text += piece.tokens
    rng = random.Random(1)
    order = [rng.choice((0, 0, 1, 2, 3, 4)) for _ in range(100)][5:]
    counts = iter(order) if drafts == "auto" else iter(lambda: 3, None)
    with torch.no_grad():
        for place, token in enumerate(text):
            row = torch.tensor([[1, 2, 3, *before, *text[:place]]])
            assert token == int(new.logits(new(row))[0, -1].argmax())
    assert sizes == defined_pieces(new, [1, 2, 3], [*before, *text], counts_behind(before, counts))[-len(sizes) :]


def counts_behind(before: list[int], counts: Iterator[int]) -> Iterator[int]:
    """No drafts until the text is as long as `before`, then `counts`."""
    return iter([*[0] * (len(before) - 1), *(next(counts) for _ in range(60))])


def test_acceptance_is_counted_by_position_and_token(drafting: Transformer) -> None:
    requests = [replace(request, details=True) for request in varied()]
    engine = Engine(drafting, rows=4, drafts=3)
    details = [piece.details for pieces in engine.generate(requests) for piece in pieces if piece.details]
    checked, kept = [0] * 3, [0] * 3
    for each in details:
        position = 0
        for drafted, accepted in zip(each.drafted, each.accepted, strict=True):
            if not drafted:
                position = 0
                continue
            checked[position] += 1
            kept[position] += accepted
            position = position + 1 if accepted else 0
    assert not any(each.drafted[0] for each in details)
    assert engine.acceptance == pytest.approx(sum(kept) / sum(checked))
    shares = [k / c for k, c in zip(kept, checked, strict=True) if c]
    assert engine.acceptance_by_position == pytest.approx(shares) and 0 < shares[1] < 1


def test_acceptance_by_position_is_that_of_the_definition(drafting: Transformer) -> None:
    engine, checked, kept = Engine(drafting, rows=3, drafts=3), [0] * 3, [0] * 3
    for prompt in PROMPTS:
        sizes, text = pieces_of(engine, prompt)
        drawn = 1
        for size in sizes[1:]:
            for position in range(min(size, 3)):
                if drawn + position < len(text) - 1:  # a row's last token ends it, whatever its draft
                    checked[position] += 1
                    kept[position] += position < size - 1
            drawn += size
    assert engine.acceptance_by_position == pytest.approx([k / c for k, c in zip(kept, checked, strict=True)])


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["ratio", "greedy"])
def test_rules_are_one_at_temperature_0_and_repeat_themselves_above(drafting: Transformer, rule: str) -> None:
    plain = Engine(drafting, rows=5).generate(varied())
    engine = Engine(drafting, rows=5, drafts=3, verify=rule)
    found, alone = engine.generate(varied()), [engine.generate([request])[0] for request in varied()]
    for request, pieces, single, expected in zip(varied(), found, alone, plain, strict=True):
        assert [piece.tokens for piece in pieces] == [piece.tokens for piece in single]  # in a crowd as alone
        if request.sampling.temperature == 0:
            assert [piece.tokens for piece in pieces] == [piece.tokens for piece in expected]
        for piece in pieces:
            assert piece.logprobs == pytest.approx(logprobs(drafting, request, piece.tokens), abs=1e-4)


def logprobs(model: Transformer, request: Request, tokens: list[int]) -> list[float]:
    with torch.no_grad():
        hidden: Tensor = model(torch.tensor([[*request.prompt, *tokens[:-1]]]))[0, len(request.prompt) - 1 :]
        law = (model.logits(hidden) / (request.sampling.temperature or 1.0)).log_softmax(-1)
    return law[range(len(tokens)), torch.tensor(tokens)].tolist()


@pytest.mark.parametrize(
    ("drafts", "verify", "message"),
    [
        (9, "coupled", r"drafts=9 is no count in 0\.\.8"),
        (-1, "coupled", "drafts=-1"),
        (1.5, "coupled", "drafts=1.5"),
        ("many", "coupled", "drafts='many'"),
        (1, "typical", "verify='typical' is unknown; choose one of coupled, ratio, greedy"),
    ],
)
def test_drafts_that_cannot_be_are_refused(drafts: object, verify: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_drafts(drafts, verify, modules=1)


def test_an_engine_checks_what_it_is_asked_to_draft(narrow: Transformer) -> None:
    with pytest.raises(ValueError, match="drafts=9"):
        Engine(narrow, rows=1, drafts=9)


def test_drafts_need_an_mtp_module(narrow: Transformer) -> None:
    bare = Transformer(replace(narrow.config, num_nextn_predict_layers=0))
    for drafts in (1, True, "auto"):
        with pytest.raises(ValueError, match="drafts need an MTP module"):
            Engine(bare, rows=1, drafts=drafts)
    Engine(bare, rows=1, drafts=0)
