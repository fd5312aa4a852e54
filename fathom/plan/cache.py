"""Memory of the past: what one token leaves in the key-value cache, over all layers of the main model."""

from math import ceil
from typing import Literal

from fathom.config import ModelConfig

CacheFormat = Literal["bf16", "fp8", "6bit"]
SCALED = 128  # latent elements that share one FP32 scale in FlashMLA's FP8 layout


def cache_elements(config: ModelConfig) -> int:
    """Elements cached per token."""
    return config.num_hidden_layers * config.attention.cache_width


def cache_bytes(config: ModelConfig, form: CacheFormat = "bf16") -> float:
    """Bytes cached per token.

    FP8 is FlashMLA's layout: the latent in e4m3 with its scales, the RoPE key in BF16; of grouped queries, one byte an
    element. "6bit" is V2's average after quantisation (V2 3.2.3).
    """
    a = config.attention
    if form == "fp8" and a.kind == "mla":
        return config.num_hidden_layers * (a.kv_lora_rank + 4 * ceil(a.kv_lora_rank / SCALED) + 2 * a.qk_rope_head_dim)
    return cache_elements(config) * {"bf16": 2, "fp8": 1, "6bit": 6 / 8}[form]


def cache_alternatives(config: ModelConfig) -> dict[str, int]:
    """Elements per token if the same heads cached otherwise (V2 Table 1).

    Latent attention where the model has none is counted as V2 sizes it: a latent of 4 heads' width and a key of half a
    head's.
    """
    a, layers = config.attention, config.num_hidden_layers
    width = a.v_head_dim if a.kind == "mla" else a.head_dim
    groups = {"MHA": a.num_attention_heads, "GQA, 8 groups": 8, "MQA": 1}
    latent = cache_elements(config) if a.kind == "mla" else layers * (4 * width + width // 2)
    fewer = {name: group for name, group in groups.items() if name == "MHA" or group < a.num_attention_heads}
    return {"MLA": latent} | {name: layers * 2 * group * width for name, group in fewer.items()}


def cache_savings(config: ModelConfig, other: ModelConfig) -> dict[str, float]:
    """The share of `other`'s BF16 cache that `config` does without, under each condition that papers quote.

    V2 against DeepSeek 67B: 82.24 % by its architecture, 93.34 % (the published 93.3 %) once V2's cache is also cut to
    6 bits while the other keeps 16.
    """
    whole = cache_bytes(other)
    return {
        "both at 16 bits": 1 - cache_bytes(config) / whole,
        "6 bits against 16": 1 - cache_bytes(config, "6bit") / whole,
    }
