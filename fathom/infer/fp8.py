"""What a cache in FP8 changes, measured where it is asked for."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fathom.infer.rounding import RoundingReport, compare, random_text
from fathom.model import PagedCache, PagedSlots, Transformer

FP8_FROM = 8, 9  # compute capability


def require_fp8(model: Transformer, pages: bool) -> None:
    """Raise ValueError unless this model's latents can be cached in FP8 here."""
    a, device = model.config.attention, model.embedding.weight.device
    why = None
    if a.kind != "mla":
        why = f"this model has {a.kind}, which caches no latents"
    elif a.kv_lora_rank % 4:
        why = f"its kv_lora_rank={a.kv_lora_rank} is no multiple of 4"
    elif device.type == "cuda" and torch.cuda.get_device_capability(device) < FP8_FROM:
        why = "this GPU has no FP8, which begins with compute capability 8.9"
    elif not pages:
        why = "rows in stretches hold the model's own numbers, and this engine has no pages"
    if why:
        raise ValueError(f'latents="fp8" needs latent attention over pages, but {why}; give pages or leave it out')


@torch.inference_mode()
def compare_fp8(model: Transformer, tokens: Int[Tensor, "B T"] | None = None) -> RoundingReport:
    """Read a text, a random one unless given, by a cache in the model's numbers and by one in FP8."""
    require_fp8(model, pages=True)
    tokens = (random_text(model) if tokens is None else tokens).to(model.embedding.weight.device)
    return compare(_logits(model, tokens, fp8=False), _logits(model, tokens, fp8=True))


def _logits(model: Transformer, tokens: Int[Tensor, "B T"], fp8: bool) -> Float[Tensor, "N V"]:
    """Scores behind every token, which sees those before it and itself as they are cached."""
    rows, length = tokens.shape
    cache = PagedCache(model.config, rows, length, model.embedding.weight.dtype, tokens.device, fp8)
    table = torch.arange(rows, dtype=torch.int32, device=tokens.device).unsqueeze(1)
    places = torch.arange(length, device=tokens.device).expand_as(tokens)
    hidden = model(tokens, slots=PagedSlots.at(cache, table, places, length, fresh=False))
    return model.logits(hidden.flatten(0, 1))
