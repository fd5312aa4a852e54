"""Bytes that one process sends to the others of its kind, from the config alone; messages go around rings."""

from math import comb

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


def data_bytes(numbers: int, ways: int, bytes_each: int = 4) -> int:
    """What summing so many numbers over `ways` replicas sends: gradients, and the few sums of a step beside them."""
    return 2 * numbers * bytes_each * (ways - 1) // ways


def shard_bytes(parameters: int, ways: int, bytes_each: int = 4) -> int:
    """ZeRO-1 over `ways`, once a step: weights gathered, and gradients summed where they belong."""
    return 2 * _others(parameters * bytes_each, ways)


def expert_bytes(config: ModelConfig, tokens: int, ways: int, bytes_each: int = 4) -> float:
    """What `tokens` of a process are expected to send forward and backward if routing is even and knows no groups.

    A token goes once to each other process that has one of its experts, with K numbers of experts and K gate weights,
    comes back, and so do the gradients of both and of the gate weights.
    """
    moe, d = config.moe, config.hidden_size
    layers = sum(config.is_moe_layer(layer) for layer in [*range(config.num_hidden_layers), *mtp_layers(config)])
    others = moe.n_routed_experts - moe.n_routed_experts // ways
    k = moe.num_experts_per_tok
    reached = (ways - 1) * (1 - comb(others, k) / comb(moe.n_routed_experts, k))
    return layers * tokens * reached * (4 * d * bytes_each + k * (4 + 2 * bytes_each))
