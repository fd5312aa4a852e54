"""What a forward pass keeps for the backward pass, in bytes per token, layer by layer.

Counted from the code of `fathom.model` and `fathom.kernels` as it runs on a GPU under autocast, where the residual
stream is as narrow as the products and one normed tensor serves all who read it. SwiGLU's activation and the experts'
are computed again in the backward pass, which keeps what they were made of. The tests play the real training step on
tensors without memory and set what it allocates beside these.

FP8 and recomputation are not of that code: there the counts are those of V3's own framework (V3 3.2.3, 3.3.3).
"""

from dataclasses import dataclass

from fathom.config import ModelConfig
from fathom.plan.layout import Precision, Recompute

HALF, STATISTIC = 2, 4  # bytes of a BF16 element, and of a float32 mean or score
INDEX, PLACE = 8, 4  # bytes of an int64 index, and of an int32 place
FP8_INPUT = 1 + 4 / 128  # an e4m3 code with its part of the scale of 128 (V3 3.3.2)


@dataclass(frozen=True, kw_only=True)
class Widths:
    """Bytes of one element where layers keep them."""

    stream: float  # residual stream
    compute: float  # outputs of products
    inputs: float  # inputs of linear layers
    experts: float  # the same in the routed experts, which never compute in float32 on a GPU

    @staticmethod
    def of(precision: Precision) -> "Widths":
        """The widths in layers of that precision."""
        match precision:
            case "fp32":
                return Widths(stream=4, compute=4, inputs=4, experts=2)
            case "bf16":
                return Widths(stream=2, compute=2, inputs=2, experts=2)
            case "fp8":
                return Widths(stream=2, compute=2, inputs=FP8_INPUT, experts=FP8_INPUT)

    def copies(self, readers: int) -> float:
        """Bytes per element that `readers` linear layers keep of one normed input: one copy each, or one for all."""
        return self.inputs * (1 if self.inputs == self.stream else readers)


def block_bytes(
    config: ModelConfig, layer: int, precision: Precision, recompute: Recompute, spread: bool = False
) -> float:
    """One layer's activations per token; layers behind the last are those of MTP modules.

    `spread` says that experts lie with several processes, where other kernels serve them.
    """
    widths = Widths.of(precision)
    if recompute == "full":
        return widths.stream * config.hidden_size
    whole = recompute == "none"
    return attention_bytes(config, widths, whole) + feed_forward_bytes(config, layer, widths, whole, spread)


def attention_bytes(config: ModelConfig, w: Widths, whole: bool) -> float:
    """Attention behind its norm; not `whole` leaves out what selective recomputation makes anew.

    That is the output of norms and, of latent attention, all that grows from the latents (V3 3.2.3).
    """
    a, d = config.attention, config.hidden_size
    heads, value = a.num_attention_heads, a.v_head_dim if a.kind == "mla" else a.head_dim
    norm = w.stream * d + STATISTIC
    result = w.compute * heads * value + STATISTIC * heads  # with the normaliser of each head's softmax
    if a.kind == "gqa":
        q, k = heads * a.head_dim, a.num_key_value_heads * a.head_dim
        kept = w.compute * (q + 2 * k) + result
        if a.qk_norm:
            kept += w.compute * (q + k) * whole + STATISTIC * (heads + a.num_key_value_heads)
        return norm + w.copies(3) * d * whole + kept
    latents = w.compute * (a.cache_width + (a.q_lora_rank or 0))  # before their norms
    statistics = STATISTIC * (1 + (a.q_lora_rank is not None))
    expanded = w.inputs * (a.kv_lora_rank + (a.q_lora_rank or 0))  # behind their norms
    expanded += STATISTIC * a.qk_rope_head_dim  # cosines and sines, which every layer lays out for its kernel
    # values are read out of the product that holds the keys' first part too, so all of it stays
    expanded += w.compute * heads * (2 * a.qk_head_dim + a.qk_nope_head_dim + value)
    return norm + latents + statistics + result + (w.copies(2) * d + expanded) * whole


def feed_forward_bytes(config: ModelConfig, layer: int, w: Widths, whole: bool, spread: bool = False) -> float:
    """The feed-forward part behind its norm; not `whole` makes norm and activation anew; `spread`: see above."""
    d, moe = config.hidden_size, config.moe
    norm = w.stream * d + STATISTIC
    if not config.is_moe_layer(layer):
        return norm + w.copies(1) * d * whole + _swiglu(config.intermediate_size, w, whole)
    k, e = moe.num_experts_per_tok, moe.n_routed_experts
    router = w.stream * d * whole + STATISTIC * e + INDEX * k  # its input, which all others in this width share
    narrow = w.inputs != w.stream and moe.n_shared_experts > 0
    routed = routed_bytes(config, w, whole and spread)
    return norm + router + w.inputs * d * narrow * whole + shared_bytes(config, w, whole) + k * routed


def routed_bytes(config: ModelConfig, w: Widths, in_steps: bool = False) -> float:
    """One expert behind the router, for one token that it serves.

    The same whether or not norms are made anew: tokens have travelled, and the activation is made anew always. In BF16
    experts of several processes compute `in_steps`, each of which keeps what it read (`fathom.kernels.grouped`).
    """
    d, wide = config.hidden_size, config.moe.moe_intermediate_size
    if in_steps and w.experts == HALF:  # silu, its product with up, that weighted, the weight, and what is summed
        return HALF * (d + 2 * wide + 3 * wide + 1 + d) + 2 * INDEX
    return w.experts * (d + 2 * wide) + STATISTIC + 2 * PLACE


def shared_bytes(config: ModelConfig, w: Widths, whole: bool) -> float:
    """The shared experts behind their input."""
    return _swiglu(config.moe.n_shared_experts * config.moe.moe_intermediate_size, w, whole)


def _swiglu(width: int, w: Widths, whole: bool) -> float:
    """Gate and up, and, unless made anew, the product that `down` reads."""
    return width * (2 * w.compute + w.inputs * whole)
