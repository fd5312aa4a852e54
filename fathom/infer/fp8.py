"""What a cache in FP8 changes, measured where it is asked for."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fathom.infer.rounding import RoundingReport, compare, random_text
from fathom.model import PagedCache, PagedSlots, Transformer


def require_fp8(model: Transformer, pages: bool) -> None:
    """Raise ValueError unless this model's latents can be cached in FP8 here."""
    a, device = model.config.attention, model.embedding.weight.device.type
    why = None
    if a.kind != "mla":
        why = f"this model has {a.kind}, which caches no latents"
    elif a.kv_lora_rank % 4:
        why = f"its kv_lora_rank={a.kv_lora_rank} is no multiple of 4"
    elif device != "cpu":
        why = f"an engine on {device} decodes by graphs that write the model's own numbers"
    elif not pages:
        why = "rows in stretches hold the model's own numbers, and this engine has no pages"
    if why:
        raise ValueError(
            f'latents="fp8" needs latent attention over pages on a CPU, but {why}; give pages or leave it out'
        )


@torch.inference_mode()
def compare_fp8(model: Transformer, tokens: Int[Tensor, "B T"] | None = None) -> RoundingReport:
    """Read a text, a random one unless given, by a cache in the model's numbers and by one in FP8."""
    require_fp8(model, pages=True)
    tokens = random_text(model) if tokens is None else tokens
    return compare(_logits(model, tokens, fp8=False), _logits(model, tokens, fp8=True))


def _logits(model: Transformer, tokens: Int[Tensor, "B T"], fp8: bool) -> Float[Tensor, "N V"]:
    """Scores behind every token, which sees those before it and itself as they are cached."""
    rows, length = tokens.shape
    cache = PagedCache(model.config, rows, length, model.embedding.weight.dtype, fp8=fp8)
    table, places = torch.arange(rows).int().unsqueeze(1), torch.arange(length).expand_as(tokens)
    hidden = model(tokens, slots=PagedSlots.at(cache, table, places, length, fresh=False))
    return model.logits(hidden.flatten(0, 1))
