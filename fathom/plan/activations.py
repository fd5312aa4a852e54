"""What a forward pass keeps for the backward pass, in bytes per token, layer by layer.

Counted from the code of `fathom.model` and `fathom.kernels` as it runs on a GPU under autocast. The embedding is
float32 and so is the residual stream: autocast turns the input of every linear layer into BF16 for each layer anew,
and those copies are what is kept. An MTP module begins with a linear layer, so its own stream is BF16. The tests play
the real training step on tensors without memory and set what it allocates beside these.

FP8 and recomputation are not of that code: there the counts are those of V3's own framework (V3 3.2.3, 3.3.3).
"""

from dataclasses import dataclass

from fathom.config import ModelConfig
from fathom.plan.layout import Precision, Recompute

HALF, STATISTIC, INDEX = 2, 4, 8  # bytes of a BF16 element, of a float32 mean or score, and of an int64 index
FP8_INPUT = 1 + 4 / 128  # an e4m3 code with its part of the scale of 128 (V3 3.3.2)


@dataclass(frozen=True, kw_only=True)
class Widths:
    """Bytes of one element where layers keep them."""

    stream: float  # residual stream
    compute: float  # outputs of products
    inputs: float  # inputs of linear layers
    experts: float  # the same in the routed experts, which never compute in float32 on a GPU

    @staticmethod
    def of(precision: Precision, mtp: bool = False) -> "Widths":
        """The widths in the main model or, with `mtp`, in an MTP module."""
        match precision:
            case "fp32":
                return Widths(stream=4, compute=4, inputs=4, experts=2)
            case "bf16":
                return Widths(stream=2 if mtp else 4, compute=2, inputs=2, experts=2)
            case "fp8":
                return Widths(stream=2, compute=2, inputs=FP8_INPUT, experts=FP8_INPUT)

    def copies(self, readers: int) -> float:
        """Bytes per element that `readers` linear layers keep of one normed input: one copy each, or one for all."""
        return self.inputs * (1 if self.inputs == self.stream else readers)


def block_bytes(config: ModelConfig, layer: int, precision: Precision, recompute: Recompute) -> float:
    """One layer's activations per token; layers behind the last are those of MTP modules."""
    widths = Widths.of(precision, mtp=layer >= config.num_hidden_layers)
    if recompute == "full":
        return widths.stream * config.hidden_size
    whole = recompute == "none"
    return attention_bytes(config, widths, whole) + feed_forward_bytes(config, layer, widths, whole)


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
    expanded = w.inputs * (a.cache_width + (a.q_lora_rank or 0))  # behind their norms
    # values are read out of the product that holds the keys' first part too, so all of it stays
    expanded += w.compute * heads * (2 * a.qk_head_dim + a.qk_nope_head_dim + value)
    return norm + latents + statistics + result + (w.copies(2) * d + expanded) * whole


def feed_forward_bytes(config: ModelConfig, layer: int, w: Widths, whole: bool) -> float:
    """The feed-forward part behind its norm; not `whole` makes norm and activation anew."""
    d, moe = config.hidden_size, config.moe
    norm = w.stream * d + STATISTIC
    if not config.is_moe_layer(layer):
        return norm + w.copies(1) * d * whole + _swiglu(config.intermediate_size, w, w.inputs, whole)
    k, e = moe.num_experts_per_tok, moe.n_routed_experts
    router = STATISTIC * (d * whole + e + k + 2) + INDEX * k  # reads the normed input in float32
    shared_width = moe.n_shared_experts * moe.moe_intermediate_size
    shared = _swiglu(shared_width, w, w.inputs, whole) if shared_width else 0.0
    own = w.stream == 4 == w.compute  # the shared experts read what the router keeps already
    copies = w.copies(1) if shared_width and not own else 0.0
    if whole:
        wide = moe.moe_intermediate_size
        # weighted: the activation before its gate weight, and the weight; summed: index_add keeps what it adds
        weighted, summed = HALF * (wide + 1), w.stream * d
        routed = w.experts * d + _swiglu(wide, Widths.of("bf16"), w.experts, whole) + weighted + summed
    else:  # V3 keeps even SwiGLU's input as it keeps the experts' own
        routed = w.experts * (d + 2 * moe.moe_intermediate_size)
    return norm + router + copies * d * whole + shared + k * (routed + 2 * INDEX)


def _swiglu(width: int, w: Widths, inputs: float, whole: bool) -> float:
    """Gate and up, and, unless made anew, silu(gate) and the product that `down` reads."""
    return width * (2 * w.compute + (w.compute + inputs) * whole)
