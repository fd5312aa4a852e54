"""Bytes that one process sends to the others of its kind, from the config alone; messages go around rings."""

from fathom.config import ModelConfig
from fathom.plan.count import mtp_layers


def context_bytes(config: ModelConfig, rows: int, seq_len: int, context: int, bytes_each: int) -> int:
    """What a forward and backward pass over `rows` of `seq_len` sends where each row is spread over `context`.

    Every layer, those of the MTP modules among them, gathers what its keys and values are made of and sums its
    gradient: MLA's latents with the shared rotated key, or GQA's keys and values.
    """
    layers = config.num_hidden_layers + len(mtp_layers(config))
    return 2 * layers * _others(rows * seq_len * config.attention.cache_width * bytes_each, context)


def full_keys_bytes(config: ModelConfig, rows: int, seq_len: int, context: int, bytes_each: int) -> int:
    """What `context_bytes` would be if MLA exchanged every head's keys and values instead of their latents."""
    a = config.attention
    width = a.num_attention_heads * (a.qk_head_dim + a.v_head_dim) if a.kind == "mla" else a.cache_width
    layers = config.num_hidden_layers + len(mtp_layers(config))
    return 2 * layers * _others(rows * seq_len * width * bytes_each, context)


def _others(whole: int, ways: int) -> int:
    """What one process sends when a tensor of `whole` bytes is gathered, or its parts are summed, among `ways`."""
    return whole * (ways - 1) // ways
