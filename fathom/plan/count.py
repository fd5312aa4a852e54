"""Parameters and floating-point operations of a config, counted without building it."""

from fathom.config import ModelConfig


def attention_parameters(config: ModelConfig) -> int:
    """One layer's attention, its inner norms included."""
    a, d = config.attention, config.hidden_size
    if a.kind == "gqa":
        queries, keys = a.num_attention_heads * a.head_dim, a.num_key_value_heads * a.head_dim
        biases = queries + 2 * keys if a.attention_bias else 0
        return 2 * d * queries + 2 * d * keys + biases + (2 * a.head_dim if a.qk_norm else 0)
    queries = a.num_attention_heads * a.qk_head_dim
    rank = a.q_lora_rank
    query = d * queries if rank is None else d * rank + rank + rank * queries
    latent = d * a.cache_width + a.kv_lora_rank
    expand = a.kv_lora_rank * a.num_attention_heads * (a.qk_nope_head_dim + a.v_head_dim)
    return query + latent + expand + a.num_attention_heads * a.v_head_dim * d


def feed_forward_parameters(config: ModelConfig, layer: int, active: bool) -> int:
    """One layer's feed-forward part; with `active` only the experts that one token meets."""
    if not config.is_moe_layer(layer):
        return 3 * config.hidden_size * config.intermediate_size
    moe = config.moe
    routed = moe.num_experts_per_tok if active else moe.n_routed_experts
    gate = moe.n_routed_experts * (config.hidden_size + moe.has_selection_bias)
    return (routed + moe.n_shared_experts) * 3 * config.hidden_size * moe.moe_intermediate_size + gate


def block_parameters(config: ModelConfig, layer: int, active: bool) -> int:
    """One transformer layer with its two norms."""
    return attention_parameters(config) + feed_forward_parameters(config, layer, active) + 2 * config.hidden_size


def mtp_parameters(config: ModelConfig, active: bool = False) -> int:
    """All MTP modules without the embedding and head that they share."""
    own = 2 * config.hidden_size**2 + 3 * config.hidden_size
    layers = range(config.num_hidden_layers, config.num_hidden_layers + config.num_nextn_predict_layers)
    return sum(block_parameters(config, layer, active) + own for layer in layers)


def main_parameters(config: ModelConfig, active: bool = False, embedding: bool = True) -> int:
    """The model without MTP; with `active` what one token meets, without `embedding` the input table left out."""
    table = config.vocab_size * config.hidden_size
    tables = table * ((embedding and not config.tie_word_embeddings) + 1)
    blocks = sum(block_parameters(config, layer, active) for layer in range(config.num_hidden_layers))
    return tables + config.hidden_size + blocks


def train_flops_per_token(config: ModelConfig, seq_len: int, mtp: bool = True) -> float:
    """Forward and backward operations per token: 6 per active weight, plus causal attention.

    The formula that reproduces the published 250 GFLOP of V3 at 4,096 tokens (without `mtp`).
    """
    a = config.attention
    value = a.v_head_dim if a.kind == "mla" else a.head_dim
    layers, weights = config.num_hidden_layers, main_parameters(config, active=True, embedding=False)
    if mtp and config.num_nextn_predict_layers:
        depths = config.num_nextn_predict_layers
        layers += depths
        weights += mtp_parameters(config, active=True) + depths * config.vocab_size * config.hidden_size
    return 6 * weights + 3 * layers * 2 * a.num_attention_heads * (a.qk_head_dim + value) * seq_len / 2
