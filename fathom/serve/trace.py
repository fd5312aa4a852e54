"""The inside view: how each token of a stream came about, for those who ask with `trace: true`.

It comes in chunks of its own, whose `choices` are empty and whose field `trace` is a `Trace`, each in front of the text
of its tokens. Clients that know nothing of it pass over them.
"""

from collections.abc import Sequence
from math import exp
from typing import Literal, NotRequired, TypedDict

from fathom.infer.request import Piece
from fathom.model import Transformer
from fathom.plan.cache import cache_alternatives, cache_elements
from fathom.text.tokenizer import Tokenizer


class TokenTrace(TypedDict):
    """One token, the one that ends the completion and the tags of thinking included."""

    id: int
    text: str  # what it adds to the text; empty where it is only part of a character
    probability: float  # of the model's own, under softmax(logits / temperature), nothing truncated
    entropy: float  # nats, of the same distribution
    draft: Literal["accepted", "rejected"] | None  # what became of the MTP draft in its place; null where none was
    version: int  # of the weights
    experts: list[list[int]]  # that every MoE layer chose at the place that drew it, the first layer first


class CacheTrace(TypedDict):
    """What one token leaves in the key-value cache over all layers, bytes."""

    bytes_per_token: int
    mha_bytes_per_token: int  # if the same heads cached every key and value (V2 Table 1)


class Trace(TypedDict):
    """What `trace` of a chunk holds."""

    index: int  # of the choice
    tokens: list[TokenTrace]
    cache: NotRequired[CacheTrace]  # in the first chunk of a choice, as is the next
    n_routed_experts: NotRequired[int]  # of a layer that has experts; 0 where none has


class Tracer:
    """Reads the tokens of one completion in their order."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._text = tokenizer.stream()

    def read(self, piece: Piece) -> list[TokenTrace]:
        """Traces of a piece that carries details."""
        found, details = list[TokenTrace](), piece.details
        if details is None:
            raise ValueError("a piece without details cannot be traced; ask for them in its request")
        for place, token in enumerate(piece.tokens):
            found.append(
                {
                    "id": token,
                    "text": self._text.step(token),
                    "probability": exp(piece.logprobs[place]),
                    "entropy": max(0.0, details.entropy[place]),
                    "draft": _verdict(details.drafted[place], details.accepted[place]),
                    "version": details.version[place],
                    "experts": [] if piece.experts is None else piece.experts[place].tolist(),
                }
            )
        return found


def _verdict(drafted: bool, accepted: bool) -> Literal["accepted", "rejected"] | None:
    if not drafted:
        return None
    return "accepted" if accepted else "rejected"


def trace_event(model: Transformer, index: int, tokens: Sequence[TokenTrace], first: bool) -> Trace:
    """The trace of a chunk."""
    trace: Trace = {"index": index, "tokens": list(tokens)}
    if first:
        trace["cache"] = trace_cache(model)
        trace["n_routed_experts"] = model.config.moe.n_routed_experts if has_experts(model) else 0
    return trace


def has_experts(model: Transformer) -> bool:
    """Whether there is anything to choose."""
    return any(map(model.config.is_moe_layer, range(model.config.num_hidden_layers)))


def trace_cache(model: Transformer) -> CacheTrace:
    """Cache of a token in the format that the model's weights have."""
    size = model.embedding.weight.element_size()
    whole = cache_alternatives(model.config)["MHA"]
    return {"bytes_per_token": cache_elements(model.config) * size, "mha_bytes_per_token": whole * size}
