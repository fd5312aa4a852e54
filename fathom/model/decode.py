"""One decoding step in fused pieces: the layers of `Transformer` for few tokens, read from the same weights.

The modules' own forward is the definition. Here a step of 10 layers is some 120 launches instead of 900, all of which
may be captured in a CUDA graph, since nothing asks the host for anything.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from fathom.kernels.attention import paged_grouped_attention, paged_latent_attention
from fathom.kernels.decode import (
    absorb_query,
    add_experts_,
    add_linear_,
    add_swiglu_,
    expand_value,
    norm_linear,
    route,
    turn_heads,
)
from fathom.model.block import Block
from fathom.model.cache import PagedCache
from fathom.model.ffn import SwiGLU
from fathom.model.gqa import GQA
from fathom.model.linear import RMSNorm
from fathom.model.mla import MLA
from fathom.model.moe import MoE
from fathom.model.rope import rotation
from fathom.model.transformer import Transformer


def rotations(model: Transformer, places: int) -> Float[Tensor, "L F 2"]:
    """Cosine and sine of every angle at places 0 .. places - 1."""
    device = model.embedding.weight.device
    turn = rotation(model.frequencies.to(device), torch.arange(places, device=device).unsqueeze(0), model.magnitude)
    return torch.view_as_real(turn.unit[0, :, 0]).contiguous()


CROWD = 32  # rows from which on torch's products are faster than those that read their weights for few


class Step(NamedTuple):
    """Where the tokens of one pass stand, and what they see. Each of B rows has N / B of them, in successive places."""

    place: Int[Tensor, " N"]  # -1 where a token is idle: it sees and writes nothing
    length: Int[Tensor, " B"]  # entries that a row's first token sees, itself among them
    table: Int[Tensor, "B C"]
    turns: Float[Tensor, "L F 2"]
    invariant: bool  # every token is computed as it would be alone, to the last bit

    @property
    def crowded(self) -> bool:
        """Whether there are so many tokens that torch multiplies them faster."""
        return is_crowd(len(self.place), self.invariant)


def is_crowd(rows: int, invariant: bool) -> bool:
    """Whether torch's products are taken: they cut many rows otherwise than few, so not where that must not show."""
    return rows >= CROWD and not invariant


def fused_hidden(
    model: Transformer,
    tokens: Int[Tensor, " N"],
    place: Int[Tensor, " N"],
    table: Int[Tensor, "B C"],
    cache: PagedCache,
    turns: Float[Tensor, "L F 2"],
    invariant: bool = False,
) -> Float[Tensor, "N D"]:
    """Hidden states behind the final norm of new tokens, whose latents are written to the pages that `table` names."""
    x = model.embedding(tokens)
    length = (place.view(len(table), -1)[:, 0] + 1).clamp(min=0)
    step = Step(place, length, table, turns, invariant)
    for block, pages in zip(model.layers, cache.layers, strict=False):
        assert isinstance(block, Block)
        fused_block(block, x, step, pages)
    return model.norm(x)


def fused_block(block: Block, x: Float[Tensor, "N D"], step: Step, pages: Float[Tensor, "P S W"]) -> None:
    """One layer, added to the residual stream `x` in place."""
    if isinstance(block.attention, MLA):
        _attend(block.attention, block.attention_norm, x, step, pages)
    else:
        _attend_groups(block.attention, block.attention_norm, x, step, pages)
    norm, ffn = block.feed_forward_norm, block.feed_forward
    if isinstance(ffn, MoE):
        _mix(ffn, norm, x, step.invariant)
    else:
        _feed(ffn, norm, x, step)


def _attend(mla: MLA, norm: RMSNorm, x: Tensor, step: Step, pages: Tensor) -> None:
    a = mla.config
    heads, rank = a.num_attention_heads, a.kv_lora_rank
    first = mla.q_proj if a.q_lora_rank is None else mla.q_a_proj
    joined = norm_linear(x, norm.weight, norm.eps, first.weight, mla.kv_a_proj.weight)
    q, kv = joined.split((first.weight.shape[0], rank + a.qk_rope_head_dim), dim=1)
    if a.q_lora_rank is not None:
        q = norm_linear(q, mla.q_a_norm.weight, mla.q_a_norm.eps, mla.q_b_proj.weight)
    w_kv, gain = mla.kv_b_proj.weight.view(heads, a.qk_nope_head_dim + a.v_head_dim, rank), mla.kv_a_norm
    q = absorb_query(q, kv, gain.weight, gain.eps, w_kv, step.turns, step.place, step.table, pages)  # (N, H, W)
    q = q.unflatten(0, (len(step.table), -1))
    splits = 1 if step.invariant else None
    context = paged_latent_attention(q, pages, step.table, step.length, rank, mla.scale, splits)
    add_linear_(x, expand_value(context.flatten(0, 1), w_kv, a.qk_nope_head_dim), mla.o_proj.weight)


def _attend_groups(gqa: GQA, norm: RMSNorm, x: Tensor, step: Step, pages: Tensor) -> None:
    maps = gqa.q_proj, gqa.k_proj, gqa.v_proj
    if step.crowded:
        normed = F.rms_norm(x, (x.shape[1],), norm.weight, norm.eps)
        q, k, v = (normed @ each.weight.T for each in maps)
    else:
        q = norm_linear(x, norm.weight, norm.eps, maps[0].weight)
        k, v = norm_linear(x, norm.weight, norm.eps, maps[1].weight, maps[2].weight).chunk(2, dim=1)
    biases = (maps[0].bias, maps[1].bias, maps[2].bias) if gqa.config.attention_bias else None
    gains = (gqa.q_norm.weight, gqa.k_norm.weight) if gqa.config.qk_norm else None
    q = turn_heads(q, k, v, biases, gains, norm.eps, step.turns, step.place, step.table, pages)
    q = q.unflatten(0, (len(step.table), -1))
    splits = 1 if step.invariant else None
    found = paged_grouped_attention(q, pages, step.table, step.length, gqa.scale, splits).flatten(0, 1).flatten(1)
    if step.crowded:
        x.addmm_(found, gqa.o_proj.weight.T)
    else:
        add_linear_(x, found, gqa.o_proj.weight)


def _feed(ffn: SwiGLU, norm: RMSNorm, x: Tensor, step: Step) -> None:
    if step.crowded:
        gate, up = (F.rms_norm(x, (x.shape[1],), norm.weight, norm.eps) @ ffn.gate_up.weight.T).chunk(2, dim=1)
        x.addmm_(F.silu(gate) * up, ffn.down.weight.T)
    else:
        add_swiglu_(x, norm_linear(x, norm.weight, norm.eps, ffn.gate_up.weight), ffn.down.weight)


def _mix(moe: MoE, norm: RMSNorm, x: Tensor, invariant: bool) -> None:
    c, router, shared = moe.config, moe.router, moe.shared
    joined = norm_linear(x, norm.weight, norm.eps, router.weight, None if shared is None else shared.gate_up.weight)
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
    beside = (None, None) if shared is None else (joined[:, c.n_routed_experts :], shared.down.weight)
    gather = True if invariant else None
    add_experts_(x, norm.weight, norm.eps, experts, weights, moe.gate_up, moe.down, *beside, gather=gather)
