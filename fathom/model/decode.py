"""One decoding step in fused pieces: the layers of `Transformer` for few tokens, read from the same weights.

The modules' own forward is the definition. Here a step of 10 layers is some 120 launches instead of 900, all of which
may be captured in a CUDA graph, since nothing asks the host for anything.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from fathom.config import ModelConfig
from fathom.kernels.attention import paged_latent_attention
from fathom.kernels.decode import (
    absorb_query,
    add_experts_,
    add_linear_,
    add_swiglu_,
    expand_value,
    norm_linear,
    route,
)
from fathom.model.block import Block
from fathom.model.cache import PagedCache
from fathom.model.linear import RMSNorm
from fathom.model.mla import MLA
from fathom.model.moe import MoE
from fathom.model.rope import rotation
from fathom.model.transformer import Transformer


def has_fused_step(config: ModelConfig) -> bool:
    """Whether the pieces cover the model: those with latent attention."""
    return config.attention.kind == "mla"


def rotations(model: Transformer, places: int) -> Float[Tensor, "L F 2"]:
    """Cosine and sine of every angle at places 0 .. places - 1."""
    device = model.embedding.weight.device
    turn = rotation(model.frequencies.to(device), torch.arange(places, device=device).unsqueeze(0), model.magnitude)
    return torch.view_as_real(turn.unit[0, :, 0]).contiguous()


def fused_hidden(
    model: Transformer,
    tokens: Int[Tensor, " N"],
    place: Int[Tensor, " N"],
    table: Int[Tensor, "B C"],
    cache: PagedCache,
    turns: Float[Tensor, "L F 2"],
) -> Float[Tensor, "N D"]:
    """States of new tokens before the final norm; their latents are written to the pages that `table` names.

    Each of the B rows has N / B successive tokens. Tokens at `place` -1 are idle: they see and write nothing.
    """
    x = model.embedding(tokens)
    length = (place.view(len(table), -1)[:, 0] + 1).clamp(min=0)
    for layer, block in enumerate(model.layers):
        fused_block(block, x, place, length, table, cache.layers[layer], turns)
    return x


def fused_logits(model: Transformer, x: Float[Tensor, "N D"], norm: RMSNorm) -> Float[Tensor, "N V"]:
    """Scores of every next token in float32, the norm included."""
    return norm_linear(x, norm.weight, norm.eps, model.head_weight)


def fused_block(
    block: nn.Module,
    x: Float[Tensor, "N D"],
    place: Int[Tensor, " N"],
    length: Int[Tensor, " B"],
    table: Int[Tensor, "B C"],
    pages: Float[Tensor, "P S W"],
    turns: Float[Tensor, "L F 2"],
) -> None:
    """One layer, added to the residual stream `x` in place; a row's first token sees `length` entries."""
    assert isinstance(block, Block) and isinstance(block.attention, MLA)
    _attend(block.attention, block.attention_norm, x, place, length, table, pages, turns)
    if isinstance(block.feed_forward, MoE):
        _mix(block.feed_forward, block.feed_forward_norm, x)
    else:
        norm, ffn = block.feed_forward_norm, block.feed_forward
        add_swiglu_(x, norm_linear(x, norm.weight, norm.eps, ffn.gate_up.weight), ffn.down.weight)


def _attend(
    mla: MLA,
    norm: RMSNorm,
    x: Tensor,
    place: Tensor,
    length: Tensor,
    table: Tensor,
    pages: Tensor,
    turns: Tensor,
) -> None:
    a = mla.config
    heads, rank = a.num_attention_heads, a.kv_lora_rank
    first = mla.q_proj if a.q_lora_rank is None else mla.q_a_proj
    joined = norm_linear(x, norm.weight, norm.eps, first.weight, mla.kv_a_proj.weight)
    q, kv = joined.split((first.weight.shape[0], rank + a.qk_rope_head_dim), dim=1)
    if a.q_lora_rank is not None:
        q = norm_linear(q, mla.q_a_norm.weight, mla.q_a_norm.eps, mla.q_b_proj.weight)
    w_kv = mla.kv_b_proj.weight.view(heads, a.qk_nope_head_dim + a.v_head_dim, rank)
    gain = mla.kv_a_norm
    q = absorb_query(q, kv, gain.weight, gain.eps, w_kv, turns, place, table, pages)  # (N, H, W)
    context = paged_latent_attention(q.unflatten(0, (len(table), -1)), pages, table, length, rank, mla.scale)
    add_linear_(x, expand_value(context.flatten(0, 1), w_kv, a.qk_nope_head_dim), mla.o_proj.weight)


def _mix(moe: MoE, norm: RMSNorm, x: Tensor) -> None:
    c, router = moe.config, moe.router
    shared = None if moe.shared is None else moe.shared.gate_up.weight
    joined = norm_linear(x, norm.weight, norm.eps, router.weight, shared)
    grouped = c.topk_method != "greedy"
    experts, weights = route(
        joined[:, : c.n_routed_experts],
        router.selection_bias,
        c.num_experts_per_tok,
        c.scoring_func,
        c.has_selection_bias,
        c.n_group if grouped else 1,
        c.topk_group if grouped else 1,
        c.norm_topk_prob,
        c.routed_scaling_factor,
    )
    shared_layer = () if moe.shared is None else (joined[:, c.n_routed_experts :], moe.shared.down.weight)
    add_experts_(x, norm.weight, norm.eps, experts, weights, moe.gate_up, moe.down, *shared_layer)
