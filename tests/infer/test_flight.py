"""What happens to requests in flight: they are cancelled, and weights are swapped under them."""

import random
from collections import defaultdict
from copy import deepcopy
from dataclasses import replace

import pytest
import torch

from fathom.config import SamplingConfig
from fathom.infer import Engine, Piece, Request
from fathom.model import Transformer

GREEDY = SamplingConfig(temperature=0.0, max_tokens=24)


def run(engine: Engine) -> list[Piece]:
    pieces: list[Piece] = []
    while engine.busy:
        pieces += engine.step()
    return pieces


def other(model: Transformer, seed: int = 1) -> Transformer:
    """The same shape with weights of its own."""
    model = Transformer(model.config)
    model.initialise(torch.Generator().manual_seed(seed))
    return model


@pytest.mark.parametrize("drafts", [0, 1, 3])
def test_a_cancelled_request_frees_its_rows_at_once_and_disturbs_nobody(narrow: Transformer, drafts: int) -> None:
    engine = Engine(narrow, rows=4, drafts=drafts)
    sampling = SamplingConfig(max_tokens=20)
    requests = [Request([1, 2], sampling, seed, frozenset(), n=2) for seed in range(3)]
    expected = [[piece.tokens for piece in engine.generate([request])[0]] for request in requests]
    first, second, waiting = map(engine.submit, requests)
    engine.step()
    engine.step()
    assert engine.cancel(first) and not engine.cancel(first)
    pieces = engine.step()  # the third takes the rows of the first
    assert engine.cancel(waiting)
    pieces += run(engine)
    assert sorted((piece.request, piece.sample) for piece in pieces) == [(second, 0), (second, 1)]
    assert [piece.tokens for piece in sorted(pieces, key=lambda piece: piece.sample)] == expected[1]
    late = engine.submit(requests[2])
    assert sorted(piece.tokens for piece in run(engine)) == sorted(expected[2])
    assert not engine.cancel(late)
    with pytest.raises(ValueError, match="request 99 was never submitted"):
        engine.cancel(99)


@pytest.mark.parametrize("pool", [{}, {"pages": 12, "page_size": 4, "step_tokens": 16}])
@pytest.mark.parametrize("steps", [0, 1, 4])
def test_a_cancelled_sample_disturbs_none_of_the_others(latent: Transformer, pool: dict[str, int], steps: int) -> None:
    engine = Engine(latent, rows=4, drafts=2, capacity=48, **pool)  # pyright: ignore[reportArgumentType]
    request = Request([1, 2, 3] * 7, SamplingConfig(max_tokens=12), seed=5, stop_ids=frozenset(), n=6)
    beside = replace(request, prompt=[2, 3], n=2)
    expected = [[piece.tokens for piece in engine.generate([each])[0]] for each in (request, beside)]
    first, second = engine.submit(request), engine.submit(beside)
    pieces = [piece for _ in range(steps) for piece in engine.step()]
    used = engine.counters.pages_used
    gone = {0, 3, 5}  # of those that run, and of those that wait
    assert all(engine.cancel(first, sample) for sample in gone)
    assert not any(engine.cancel(first, sample) for sample in (*gone, 6))
    assert engine.counters.pages_used < used or not used
    pieces += run(engine)
    found = {(piece.request, piece.sample): piece.tokens for piece in pieces}
    kept = {(first, sample): expected[0][sample] for sample in range(6) if sample not in gone}
    assert found == kept | {(second, sample): expected[1][sample] for sample in range(2)}
    assert engine.counters.pages_used == 0


def test_a_request_whose_samples_are_all_cancelled_is_over(latent: Transformer) -> None:
    engine = Engine(latent, rows=2)
    request = engine.submit(Request([1, 2], GREEDY, 0, frozenset(), n=2))
    engine.step()
    assert engine.cancel(request, 1) and engine.busy
    assert engine.cancel(request, 0) and not engine.busy and engine.step() == []
    assert not engine.cancel(request)
    with pytest.raises(ValueError, match="sample=-1 is negative"):
        engine.cancel(request, -1)


@pytest.mark.slow
def test_no_row_is_lost_over_a_thousand_requests_cancelled_at_random(latent: Transformer) -> None:
    rng, engine = random.Random(0), Engine(latent, rows=6, drafts=True)
    flying, done = list[int](), defaultdict[int, int](int)
    for number in range(1000):
        sampling = SamplingConfig(max_tokens=rng.randint(1, 4), presence_penalty=rng.choice((0.0, 1.0)))
        n = rng.randint(1, 3)
        flying.append(engine.submit(Request([1, 2], sampling, number, frozenset({4}), n=n)))
        if rng.random() < 0.3:
            for piece in engine.step():
                done[piece.request] += 1
        if rng.random() < 0.7:
            engine.cancel(flying.pop(rng.randrange(len(flying))))
    for piece in run(engine):
        done[piece.request] += 1
    assert set(flying) <= set(done)
    assert not engine.busy and engine.step() == []
    whole = Request([1, 2], SamplingConfig(max_tokens=9), seed=1, stop_ids=frozenset(), n=6)
    assert [p.tokens for p in engine.generate([whole])[0]] == [
        p.tokens for p in Engine(latent, rows=6).generate([whole])[0]
    ]


def swapped(engine: Engine, model: Transformer, request: Request, in_flight: str) -> list[list[Piece]]:
    """Pieces of every sample where the weights change to those of `model` after 4 steps."""
    engine.submit(request, stream=True)
    pieces = [piece for _ in range(4) for piece in engine.step()]
    assert engine.swap_weights(model.state_dict(), in_flight=in_flight) == 1
    pieces += run(engine)
    return [[piece for piece in pieces if piece.sample == sample] for sample in range(request.n)]


@pytest.mark.parametrize("drafts", [0, 1, 3])
def test_recomputed_rows_go_on_as_the_new_weights_say(narrow: Transformer, drafts: int) -> None:
    old, new = deepcopy(narrow), other(narrow)
    for parameter in new.parameters():
        parameter.data *= 2
    request = Request([1, 2, 3], GREEDY, 0, frozenset(), n=2, details=True)
    for pieces in swapped(Engine(old, rows=3, drafts=drafts), new, request, "recompute"):
        tokens = [token for piece in pieces for token in piece.tokens]
        versions = [version for piece in pieces if piece.details for version in piece.details.version]
        assert versions == sorted(versions) and set(versions) == {0, 1}
        assert [piece.version for piece in pieces if piece.tokens] == [
            piece.details.version[-1] for piece in pieces if piece.details
        ]
        for count, version in enumerate(versions):
            with torch.no_grad():
                model = new if version else narrow
                logits = model.logits(model(torch.tensor([[1, 2, 3, *tokens[:count]]])))[0, -1]
            assert tokens[count] == int(logits.argmax())


@pytest.mark.parametrize("drafts", [0, 1, 3])
def test_rows_that_continue_keep_what_the_old_weights_wrote(model: Transformer, drafts: int) -> None:
    request = Request([1, 2, 3], replace(GREEDY, temperature=1.0), 0, frozenset(), n=2)
    head, body = deepcopy(model), other(model)
    head.head.weight.data.neg_()  # writes to no cache, so nothing is to be recomputed

    def texts(new: Transformer, way: str) -> list[list[int]]:
        samples = swapped(Engine(deepcopy(model), rows=3, drafts=drafts), new, request, way)
        return [[token for piece in pieces for token in piece.tokens] for pieces in samples]

    assert texts(head, "recompute") == texts(head, "continue")
    assert texts(body, "recompute") != texts(body, "continue")


def test_swapped_weights_are_used_and_numbered(latent: Transformer) -> None:
    engine, new = Engine(deepcopy(latent), rows=1), other(latent)
    request = Request([1, 2, 3], GREEDY, 0, frozenset())
    (old,) = engine.generate([request])[0]
    assert (old.version, engine.version) == (0, 0)
    assert engine.swap_weights(new.state_dict(), version=40) == 40
    (piece,) = engine.generate([request])[0]
    assert piece.version == engine.version == 40
    assert piece.tokens == Engine(new, rows=1).generate([request])[0][0].tokens != old.tokens
    assert engine.swap_weights() == 41


def test_swaps_that_cannot_be_are_refused_and_change_nothing(latent: Transformer) -> None:
    engine = Engine(deepcopy(latent), rows=1)
    request = Request([1, 2, 3], GREEDY, 0, frozenset())
    (expected,) = engine.generate([request])[0]
    new = other(latent).state_dict()
    name = next(iter(new))
    with pytest.raises(ValueError, match=f"the weights lack {name}"):
        engine.swap_weights({key: value for key, value in new.items() if key != name})
    with pytest.raises(ValueError, match="the model has no zz"):
        engine.swap_weights(new | {"zz": new[name]})
    with pytest.raises(ValueError, match=r"has the shape \(1, 1\), but the model's"):
        engine.swap_weights(new | {"head.weight": torch.zeros(1, 1)})
    with pytest.raises(ValueError, match="version=0 is no later one"):
        engine.swap_weights(new, version=0)
    engine.submit(request)
    with pytest.raises(ValueError, match="1 requests are in flight"):
        engine.swap_weights(new)
    (piece,) = run(engine)
    assert replace(piece, request=0) == replace(expected, request=0)
