"""How likely a model finds given texts: what multiple-choice and perplexity benchmarks ask."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fathom.model import Transformer

TOKENS = 1 << 13  # of one pass, padding included: bounds its memory

Ids = Sequence[int]


class Likelihood(NamedTuple):
    """A continuation under the model."""

    logprob: float  # natural logarithm, summed over the tokens
    is_greedy: bool  # whether every token is the likeliest at its place


@torch.inference_mode()
def score_continuations(
    model: Transformer, pairs: Sequence[tuple[Ids, Ids]], tokens: int = TOKENS
) -> Iterator[tuple[int, Likelihood]]:
    """The likelihood of each continuation behind its context, with the pair's place, longest pairs first.

    A pair longer than the model's context loses the beginning of its context. Raises ValueError for a pair without a
    context and for a continuation that is longer than the model's context.
    """
    limit = model.config.max_position_embeddings
    for context, continuation in pairs:
        if not context:
            raise ValueError("a continuation has nothing in front of it; give a begin-of-sequence token as its context")
        if len(continuation) > limit:
            raise ValueError(f"a continuation has {len(continuation)} tokens, but the model's context holds {limit}")
    inputs = [[*context, *continuation][:-1][-limit:] for context, continuation in pairs]
    order = sorted(range(len(pairs)), key=lambda place: -len(inputs[place]))
    while order:
        rows = max(1, tokens // max(1, len(inputs[order[0]])))
        batch, order = order[:rows], order[rows:]
        found = _score(model, [inputs[place] for place in batch], [pairs[place][1] for place in batch])
        yield from zip(batch, found, strict=True)


def _score(model: Transformer, inputs: Sequence[Ids], continuations: Sequence[Ids]) -> list[Likelihood]:
    """One pass: rows are padded on the right, where no token sees the padding."""
    device = model.embedding.weight.device
    width = max(map(len, inputs))
    padded = torch.tensor([[*row, *[0] * (width - len(row))] for row in inputs], device=device)
    hidden = model(padded)
    found: list[Likelihood] = []
    for row, given, continuation in zip(hidden, inputs, continuations, strict=True):
        if not continuation:
            found.append(Likelihood(0.0, True))
            continue
        logits: Tensor = model.logits(row[len(given) - len(continuation) : len(given)])
        wanted = torch.tensor(continuation, device=device)
        chosen = logits.log_softmax(-1).gather(1, wanted.unsqueeze(1)).double().sum()
        found.append(Likelihood(float(chosen), bool((logits.argmax(-1) == wanted).all())))
    return found


def rolling_windows(tokens: Ids, prefix: int, limit: int) -> Iterator[tuple[Ids, Ids]]:
    """Pairs whose continuations are the whole text, cut where the model's context ends.

    The first window stands behind `prefix`, every further one behind the token before it; the last reaches back as
    far as the context allows.
    """
    if tokens:
        yield [prefix], tokens[:limit]
    for start in range(limit, len(tokens), limit):
        end = min(start + limit, len(tokens))
        yield tokens[end - limit - 1 : start], tokens[start:end]
