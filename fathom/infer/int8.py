"""What decoding with weights of 8 bits changes, measured where it is asked for."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fathom.model import CacheSlots, LatentCache, Streamed, Transformer, streams

ROWS, LENGTH = 2, 64  # of the random text on which float32 and int8 are compared


@dataclass(frozen=True)
class Int8Report:
    """Logits of int8 beside those of float32, on the same random text."""

    error: float  # the logits' root mean square difference, as a share of their spread: both without their row's mean
    agreement: float  # share of places where the same token is the likeliest
    places: int

    def __str__(self) -> str:
        return (
            f"logits err by {self.error:.2%} of their spread, and {self.agreement:.1%} of the likeliest tokens are "
            f"those of float32, over {self.places} places of random text"
        )


def require_int8(model: Transformer) -> None:
    """Raise ValueError unless this model can be decoded in int8 here."""
    if not streams(model, int8=True):
        weight = model.embedding.weight
        raise ValueError(
            f"int8 needs latent attention in float32 on an x86 CPU, and this model has {model.config.attention.kind} "
            f"in {str(weight.dtype).removeprefix('torch.')} on {weight.device.type}; leave int8 out"
        )


@torch.inference_mode()
def compare_int8(model: Transformer) -> Int8Report:
    """Read a random text in float32 and, all but its first tokens, in int8."""
    require_int8(model)
    config = model.config
    length = min(LENGTH, config.max_position_embeddings)
    tokens = torch.randint(config.vocab_size, (ROWS, length), generator=torch.Generator().manual_seed(0))
    exact, coarse = _logits(model, model, tokens), _logits(model, Streamed(model, int8=True), tokens)
    spread = (exact - exact.mean(-1, keepdim=True)).square().mean().sqrt()
    difference = exact - coarse
    error = (difference - difference.mean(-1, keepdim=True)).square().mean().sqrt() / spread
    agreement = (exact.argmax(-1) == coarse.argmax(-1)).float().mean()
    return Int8Report(float(error), float(agreement), len(exact))


def _logits(model: Transformer, reader: Transformer | Streamed, tokens: Int[Tensor, "B T"]) -> Float[Tensor, "N V"]:
    """Scores behind every token but the first of each row, which the model itself reads."""
    cache = LatentCache(model.config, tokens.shape[0], tokens.shape[1])
    places = torch.arange(tokens.shape[1]).expand_as(tokens)
    model(tokens[:, :1], slots=CacheSlots.at(cache, 0, places[:, :1], 1, fresh=True))
    hidden = reader(tokens[:, 1:], slots=CacheSlots.at(cache, 0, places[:, 1:], tokens.shape[1], fresh=False))
    return reader.logits(hidden.flatten(0, 1))
