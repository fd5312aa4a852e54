"""How likely a model finds a text that is given, token by token."""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from fathom.model import Transformer

LOGITS = 1 << 24  # numbers of one product with the vocabulary: bounds its memory


class Scores(NamedTuple):
    """Of every token but the first, which nothing stands in front of."""

    logprobs: list[float]  # natural logarithms at temperature 1
    top: list[list[tuple[int, float]]]  # the likeliest tokens in its place, the first first


@torch.inference_mode()
def score(model: Transformer, text: Sequence[int], likeliest: int = 0) -> Scores:
    """One pass over a text, without a cache."""
    tokens = torch.tensor([text], device=model.embedding.weight.device)
    hidden, wanted = model(tokens)[0, :-1], tokens[0, 1:].unsqueeze(1)
    found = Scores([], [])
    rows = max(1, LOGITS // model.config.vocab_size)
    for states, chosen in zip(hidden.split(rows), wanted.split(rows), strict=True):
        logprobs = model.logits(states).float().log_softmax(-1)
        found.logprobs.extend(logprobs.gather(1, chosen).squeeze(1).tolist())
        best, ids = logprobs.topk(likeliest)
        found.top.extend(list(zip(*pair, strict=True)) for pair in zip(ids.tolist(), best.tolist(), strict=True))
    return found
