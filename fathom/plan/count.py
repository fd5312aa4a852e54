"""Parameters and floating-point operations of a config, counted without building it."""

from collections import Counter
from math import ceil, prod

from fathom.config import ModelConfig
from fathom.config.published import Dtype

Shape = tuple[int, int]  # (out, in) of a linear layer

# ---- parameters -----------------------------------------------------------------------------------------------------


def attention_shapes(config: ModelConfig) -> list[Shape]:
    """The linear layers of one layer's attention."""
    a, d = config.attention, config.hidden_size
    if a.kind == "gqa":
        queries, keys = a.num_attention_heads * a.head_dim, a.num_key_value_heads * a.head_dim
        return [(queries, d), (keys, d), (keys, d), (d, queries)]
    queries, rank = a.num_attention_heads * a.qk_head_dim, a.q_lora_rank
    return [
        *([(queries, d)] if rank is None else [(rank, d), (queries, rank)]),
        (a.cache_width, d),
        (a.num_attention_heads * (a.qk_nope_head_dim + a.v_head_dim), a.kv_lora_rank),
        (d, a.num_attention_heads * a.v_head_dim),
    ]


def attention_parameters(config: ModelConfig) -> int:
    """One layer's attention, its inner norms and biases included."""
    a, shapes = config.attention, attention_shapes(config)
    if a.kind == "mla":
        small = a.kv_lora_rank + (a.q_lora_rank or 0)
    else:
        small = sum(out for out, _ in shapes[:3]) * a.attention_bias + 2 * a.head_dim * a.qk_norm
    return sum(map(prod, shapes)) + small


def feed_forward_shapes(config: ModelConfig, layer: int) -> Counter[Shape]:
    """How often each linear layer stands in one layer's feed-forward part; the shared experts are one wide expert."""
    d, moe = config.hidden_size, config.moe
    if not config.is_moe_layer(layer):
        widths = {config.intermediate_size: 1}
    else:
        widths = Counter({moe.moe_intermediate_size: moe.n_routed_experts})
        widths[moe.n_shared_experts * moe.moe_intermediate_size] += moe.n_shared_experts > 0
    shapes: Counter[Shape] = Counter()
    for width, experts in widths.items():
        shapes[width, d] += 2 * experts
        shapes[d, width] += experts
    return shapes


def feed_forward_parts(config: ModelConfig, layer: int, active: bool) -> dict[str, int]:
    """One layer's feed-forward part by kind; with `active` only the experts that one token meets."""
    d, moe = config.hidden_size, config.moe
    if not config.is_moe_layer(layer):
        return {"dense feed-forward": 3 * d * config.intermediate_size}
    expert = 3 * d * moe.moe_intermediate_size
    return {
        "shared experts": moe.n_shared_experts * expert,
        "routed experts": (moe.num_experts_per_tok if active else moe.n_routed_experts) * expert,
        "router": moe.n_routed_experts * (d + moe.has_selection_bias),
    }


def feed_forward_parameters(config: ModelConfig, layer: int, active: bool) -> int:
    """One layer's feed-forward part, router included."""
    return sum(feed_forward_parts(config, layer, active).values())


def block_parameters(config: ModelConfig, layer: int, active: bool) -> int:
    """One transformer layer with its two norms."""
    return attention_parameters(config) + feed_forward_parameters(config, layer, active) + 2 * config.hidden_size


def mtp_parameters(config: ModelConfig, active: bool = False) -> int:
    """All MTP modules without the embedding and head that they share."""
    own = 2 * config.hidden_size**2 + 3 * config.hidden_size
    return sum(block_parameters(config, layer, active) + own for layer in mtp_layers(config))


def main_parameters(config: ModelConfig, active: bool = False, embedding: bool = True) -> int:
    """The model without MTP; with `active` what one token meets, without `embedding` the input table left out."""
    table = config.vocab_size * config.hidden_size
    tables = table * ((embedding and not config.tie_word_embeddings) + 1)
    blocks = sum(times * block_parameters(config, layer, active) for layer, times in layer_kinds(config).items())
    return tables + config.hidden_size + blocks


def parts(config: ModelConfig, active: bool = False) -> dict[str, int]:
    """Where the parameters are: they sum to `main_parameters` and, as the last part, `mtp_parameters`.

    A tied head is counted as the embedding that it is.
    """
    table, layers = config.vocab_size * config.hidden_size, config.num_hidden_layers
    counts = {
        "embedding": table,
        "head": 0 if config.tie_word_embeddings else table,
        "attention": layers * attention_parameters(config),
        "dense feed-forward": 0,
        "shared experts": 0,
        "routed experts": 0,
        "router": 0,
        "norms": (2 * layers + 1) * config.hidden_size,
        "mtp": mtp_parameters(config, active),
    }
    for layer, times in layer_kinds(config).items():
        for part, parameters in feed_forward_parts(config, layer, active).items():
            counts[part] += times * parameters
    return counts


def layer_kinds(config: ModelConfig) -> dict[int, int]:
    """A layer of each kind, dense and of experts, and how many like it there are, MTP modules left out."""
    layers = config.num_hidden_layers
    dense = config.moe.first_k_dense_replace if config.moe.n_routed_experts else layers
    return {layer: times for layer, times in ((0, dense), (layers - 1, layers - dense)) if times}


def mtp_layers(config: ModelConfig) -> range:
    """The numbers of the layers that MTP modules hold: they count on from the last."""
    return range(config.num_hidden_layers, config.num_hidden_layers + config.num_nextn_predict_layers)


# ---- checkpoints ----------------------------------------------------------------------------------------------------

BLOCK = 128  # side of the block of weights that shares one scale (V3 3.3.2)
ELEMENT_BYTES = {"F8_E4M3": 1, "BF16": 2, "F32": 4}


def moe_layers(config: ModelConfig) -> int:
    """How many layers have experts, those of MTP modules among them."""
    return sum(config.is_moe_layer(layer) for layer in [*range(config.num_hidden_layers), *mtp_layers(config)])


def checkpoint_elements(config: ModelConfig, fp8: bool = True) -> dict[str, int]:
    """Elements by type in the released form, where every MTP module repeats the embedding and the head.

    With `fp8` the linear layers are e4m3 codes with one FP32 scale a block; embeddings, heads, norms, routers and the
    projection of MTP stay BF16. Selection biases are FP32 either way.
    """
    layers = range(config.num_hidden_layers + config.num_nextn_predict_layers)
    shapes: Counter[Shape] = Counter()
    for layer in layers if fp8 else ():
        shapes += Counter(attention_shapes(config)) + feed_forward_shapes(config, layer)
    codes = sum(prod(shape) * times for shape, times in shapes.items())
    scales = sum(ceil(out / BLOCK) * ceil(width / BLOCK) * times for (out, width), times in shapes.items())
    moe = config.moe
    biases = sum(moe.n_routed_experts * moe.has_selection_bias for layer in layers if config.is_moe_layer(layer))
    copies = 2 * config.vocab_size * config.hidden_size * config.num_nextn_predict_layers
    rest = main_parameters(config) + mtp_parameters(config) + copies - codes - biases
    return {"F8_E4M3": codes, "BF16": rest, "F32": scales + biases}


def checkpoint_bytes(config: ModelConfig, dtype: Dtype) -> int:
    """The tensors of an exported checkpoint, without the headers of its files."""
    elements = checkpoint_elements(config, fp8=dtype == "fp8")
    sizes = ELEMENT_BYTES | ({"BF16": 4} if dtype == "float32" else {})
    return sum(sizes[kind] * elements[kind] for kind in elements)


# ---- operations -----------------------------------------------------------------------------------------------------


def train_flops_per_token(config: ModelConfig, seq_len: int, mtp: bool = True, causal: bool = True) -> float:
    """Forward and backward operations per token: 6 per active weight, plus attention.

    The formula that reproduces the published 250 GFLOP of V3 at 4,096 tokens (without `mtp`). Without `causal`,
    attention is counted over the whole square of the sequence, as in the non-causal MFU (ISCA'25 Table 4).
    """
    layers, weights = config.num_hidden_layers, main_parameters(config, active=True, embedding=False)
    if mtp and config.num_nextn_predict_layers:
        depths = config.num_nextn_predict_layers
        layers += depths
        weights += mtp_parameters(config, active=True) + depths * config.vocab_size * config.hidden_size
    return 6 * weights + 3 * layers * score_flops(config) * seq_len / (1 + causal)


def prefill_flops_per_token(config: ModelConfig, seq_len: int) -> float:
    """Forward operations per token of a prompt of `seq_len` tokens, a third of training's."""
    return train_flops_per_token(config, seq_len, mtp=False) / 3


def decode_flops_per_token(config: ModelConfig, context: int) -> float:
    """Operations to generate one token behind `context` cached ones; latent attention with its weights absorbed."""
    weights = main_parameters(config, active=True, embedding=False)
    return 2 * weights + config.num_hidden_layers * score_flops(config, absorbed=True) * context


def score_flops(config: ModelConfig, absorbed: bool = False) -> int:
    """Operations of one layer's attention for one query token and one key.

    Absorbed, every head of latent attention works on the cached latent itself: fewer bytes, more operations (V2
    appendix C).
    """
    a = config.attention
    if a.kind == "gqa":
        widths = 2 * a.head_dim
    elif absorbed:
        widths = a.cache_width + a.kv_lora_rank
    else:
        widths = a.qk_head_dim + a.v_head_dim
    return 2 * a.num_attention_heads * widths
