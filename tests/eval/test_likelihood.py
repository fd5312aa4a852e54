"""Likelihoods against one token at a time."""

import random

import pytest
import torch

from fathom.eval.likelihood import rolling_windows, score_continuations
from fathom.infer.offline import Engine
from fathom.model import Transformer


def one_by_one(model: Transformer, context: list[int], continuation: list[int]) -> tuple[float, bool]:
    """Every token by a pass of its own."""
    total, greedy = 0.0, True
    with torch.inference_mode():
        for place, token in enumerate(continuation):
            ids = [*context, *continuation[:place]]
            law = model.logits(model(torch.tensor([ids])))[0, -1].double().log_softmax(-1)
            total += float(law[token])
            greedy &= int(law.argmax()) == token
    return total, greedy


def likeliest(model: Transformer, context: list[int], count: int) -> list[int]:
    ids = list(context)
    with torch.inference_mode():
        for _ in range(count):
            ids.append(int(model.logits(model(torch.tensor([ids])))[0, -1].argmax()))
    return ids[len(context) :]


@pytest.mark.parametrize("tokens", [1, 40, 10_000])
def test_likelihoods_are_those_of_single_steps(untrained: Engine, tokens: int) -> None:
    model, rng = untrained.model, random.Random(0)
    pairs = [
        ([rng.randrange(12, 900) for _ in range(n)], [rng.randrange(900) for _ in range(n % 4)]) for n in range(1, 9)
    ]
    pairs.append((pairs[5][0], likeliest(model, pairs[5][0], 3)))
    found = dict(score_continuations(model, pairs, tokens))
    assert sorted(found) == list(range(9))
    for place, pair in enumerate(pairs):
        logprob, greedy = one_by_one(model, *pair)
        assert found[place].logprob == pytest.approx(logprob, abs=1e-4)
        assert found[place].is_greedy == greedy
    assert found[8].is_greedy and not found[4].is_greedy
    assert found[3] == (0.0, True)  # an empty continuation is certain


def test_what_does_not_fit_loses_its_beginning(untrained: Engine) -> None:
    long = [20 + n for n in range(60)]
    found = dict(score_continuations(untrained.model, [(long, [5, 6]), (long[-47:], [5, 6])]))
    assert found[0] == pytest.approx(found[1])
    for pair, sentence in ((([], [1]), "nothing in front"), (([1], long), "has 60 tokens, .* holds 48")):
        with pytest.raises(ValueError, match=sentence):
            list(score_continuations(untrained.model, [pair]))


def test_windows_hold_every_token_once() -> None:
    assert list(rolling_windows([], 9, 4)) == []
    assert list(rolling_windows([1, 2, 3], 9, 4)) == [([9], [1, 2, 3])]
    assert list(rolling_windows(list(range(8)), 9, 4)) == [([9], [0, 1, 2, 3]), ([3], [4, 5, 6, 7])]
    assert list(rolling_windows(list(range(10)), 9, 4)) == [
        ([9], [0, 1, 2, 3]),
        ([3], [4, 5, 6, 7]),
        ([5, 6, 7], [8, 9]),
    ]
