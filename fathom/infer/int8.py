"""What decoding with weights of 8 bits changes, measured where it is asked for."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fathom.infer.rounding import RoundingReport, compare, random_text
from fathom.model import CacheSlots, LatentCache, Streamed, Transformer, streams


def require_int8(model: Transformer) -> None:
    """Raise ValueError unless this model can be decoded in int8 here."""
    if not streams(model, int8=True):
        weight = model.embedding.weight
        raise ValueError(
            f"int8 needs latent attention in float32 on an x86 CPU, and this model has {model.config.attention.kind} "
            f"in {str(weight.dtype).removeprefix('torch.')} on {weight.device.type}; leave int8 out"
        )


@torch.inference_mode()
def compare_int8(model: Transformer) -> RoundingReport:
    """Read a random text in float32 and, all but its first tokens, in int8."""
    require_int8(model)
    tokens = random_text(model)
    return compare(_logits(model, model, tokens), _logits(model, Streamed(model, int8=True), tokens))


def _logits(model: Transformer, reader: Transformer | Streamed, tokens: Int[Tensor, "B T"]) -> Float[Tensor, "N V"]:
    """Scores behind every token but the first of each row, which the model itself reads."""
    cache = LatentCache(model.config, tokens.shape[0], tokens.shape[1])
    places = torch.arange(tokens.shape[1]).expand_as(tokens)
    model(tokens[:, :1], slots=CacheSlots.at(cache, 0, places[:, :1], 1, fresh=True))
    hidden = reader(tokens[:, 1:], slots=CacheSlots.at(cache, 0, places[:, 1:], tokens.shape[1], fresh=False))
    return reader.logits(hidden.flatten(0, 1))
