"""Attention and feed-forward layers over tables of `fathom.kernels.stream`, each with the norm before it.

The arithmetic is that of `mla`, `ffn` and `moe`. The gain of a norm is multiplied into the matrices that read it, and
matrices that read the same vector lie side by side.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Complex, Float
from torch import Tensor

from fathom.kernels.router import choose_experts, gate_weights, router_scores
from fathom.kernels.stream import stream, stream_swiglu, table
from fathom.model.cache import CacheSlots
from fathom.model.ffn import SwiGLU
from fathom.model.linear import RMSNorm
from fathom.model.mla import MLA
from fathom.model.moe import MoE


class Norm:
    """RMSNorm but for its gain: x / hypot(|x|, sqrt(D eps)). `gain` holds the missing factor sqrt(D) too."""

    def __init__(self, norm: RMSNorm) -> None:
        width = norm.weight.shape[0]
        self.root = torch.tensor((width * norm.eps) ** 0.5)
        self.gain = norm.weight.detach() * width**0.5

    def __call__(self, x: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
        return x / self.length(x)

    def length(self, x: Float[Tensor, "N D"]) -> Float[Tensor, "N 1"]:
        return torch.linalg.vector_norm(x, 2, -1, True).hypot_(self.root)

    def read_by(self, *weights: Float[Tensor, "O D"]) -> Float[Tensor, "D P"]:
        """The matrices that read the norm, side by side, with its gain in them."""
        return (torch.cat(weights) * self.gain).T


class StreamedMLA:
    """Absorbed latent attention of a few tokens over a cache that holds those before them."""

    def __init__(self, mla: MLA, norm: RMSNorm, int8: bool) -> None:
        a = self.config = mla.config
        heads = a.num_attention_heads
        self.layer, self.scale = mla.layer, mla.scale
        self.norm, self.latent_norm = Norm(norm), Norm(mla.kv_a_norm)
        self.query_norm = self.queries = None
        if a.q_lora_rank is None:
            first = self._turned_last(mla.q_proj.weight)
        else:
            first = mla.q_a_proj.weight
            self.query_norm = Norm(mla.q_a_norm)
            self.queries = table(self.query_norm.read_by(self._turned_last(mla.q_b_proj.weight)), int8)
        self.inputs = table(self.norm.read_by(first, mla.kv_a_proj.weight), int8)
        self.input_widths = (first.shape[0], a.kv_lora_rank, a.qk_rope_head_dim)
        self.query_widths = (heads * a.qk_nope_head_dim, heads * a.qk_rope_head_dim)
        weight = mla.kv_b_proj.weight.detach().view(heads, a.qk_nope_head_dim + a.v_head_dim, a.kv_lora_rank)
        w_uk, w_uv = weight.split((a.qk_nope_head_dim, a.v_head_dim), dim=1)
        self.w_uk, self.w_uv = w_uk.contiguous(), w_uv.transpose(1, 2).contiguous()  # (H, nope, R), (H, R, v)
        self.out = table(mla.o_proj.weight.T, int8)

    def _turned_last(self, weight: Float[Tensor, "O I"]) -> Float[Tensor, "O I"]:
        """The parts of all heads that are not rotated before those that are."""
        a = self.config
        heads = weight.view(a.num_attention_heads, a.qk_head_dim, -1)
        return torch.cat([part.flatten(0, 1) for part in heads.split((a.qk_nope_head_dim, a.qk_rope_head_dim), dim=1)])

    def __call__(
        self, x: Float[Tensor, "N D"], unit: Complex[Tensor, "N F"], slots: CacheSlots
    ) -> Float[Tensor, "N D"]:
        a, tokens = self.config, x.shape[0]
        heads, (batch, time) = a.num_attention_heads, slots.positions.shape
        inputs = stream(self.norm(x), self.inputs)
        query, latent, k_rope = inputs.split_with_sizes(self.input_widths, 1)
        latent.div_(self.latent_norm.length(latent)).mul_(self.latent_norm.gain)
        _rotate_(k_rope, unit)  # in place, so that what is cached lies together in `inputs`
        if self.query_norm is not None and self.queries is not None:
            query = stream(self.query_norm(query), self.queries)
        nope, rope = query.split_with_sizes(self.query_widths, 1)
        rope = rope.view(tokens, heads, -1)
        _rotate_(rope, unit.unsqueeze(1))
        absorbed = torch.bmm(nope.view(tokens, heads, -1).transpose(0, 1), self.w_uk)  # (H, N, R)
        q = torch.cat((absorbed.transpose(0, 1), rope), dim=-1).view(batch, time, heads, -1)
        latents = inputs.narrow(1, self.input_widths[0], a.cache_width).view(batch, time, -1)
        context = slots.attend(self.layer, latents, q, a.kv_lora_rank, self.scale).view(tokens, heads, -1)
        out = torch.bmm(context.transpose(0, 1), self.w_uv)  # (H, N, v)
        return stream(out.transpose(0, 1).reshape(tokens, -1), self.out)


class StreamedSwiGLU:
    """A dense feed-forward layer."""

    def __init__(self, layer: SwiGLU, norm: RMSNorm, int8: bool) -> None:
        self.norm = Norm(norm)
        self.gate_up = table(self.norm.read_by(layer.gate_up.weight), int8)
        self.down = table(layer.down.weight.T, int8)

    def __call__(self, x: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
        gate, up = stream(self.norm(x), self.gate_up).chunk(2, dim=-1)
        return stream(F.silu(gate).mul_(up), self.down)


class StreamedMoE:
    """Routed experts, and behind them in the same tables the shared ones, which every token chooses with weight 1."""

    def __init__(self, layer: MoE, norm: RMSNorm, int8: bool) -> None:
        c = self.config = layer.config
        self.norm = Norm(norm)
        self.router = self.norm.read_by(layer.router.weight).contiguous()
        self.bias = layer.router.selection_bias.detach().clone()
        gate_up, down = layer.gate_up, layer.down.transpose(1, 2)  # (E, 2M, D), (E, M, D)
        if layer.shared is not None:
            halves = layer.shared.gate_up.weight.unflatten(0, (2, c.n_shared_experts, -1))
            gate_up = torch.cat((gate_up, halves.transpose(0, 1).flatten(1, 2)))
            down = torch.cat((down, layer.shared.down.weight.T.unflatten(0, (c.n_shared_experts, -1))))
        self.shared = torch.arange(c.n_routed_experts, len(gate_up)).unsqueeze(0)  # (1, S)
        self.ones = torch.ones(self.shared.shape)
        self.gate_up = table((gate_up * self.norm.gain).transpose(1, 2).flatten(0, 1), int8)
        self.down = table(down.flatten(0, 1), int8)

    def __call__(self, x: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
        c, tokens = self.config, x.shape[0]
        normed = self.norm(x)
        scores = router_scores(torch.mm(normed, self.router), c.scoring_func)
        choice = scores + self.bias if c.has_selection_bias else scores
        if c.topk_method == "greedy":
            experts = choose_experts(choice, c.num_experts_per_tok)
        else:
            best = 2 if c.has_selection_bias else 1
            experts = choose_experts(choice, c.num_experts_per_tok, c.n_group, c.topk_group, best)
        weights = gate_weights(scores, experts, c.norm_topk_prob, c.routed_scaling_factor)
        experts = torch.cat((experts, self.shared.expand(tokens, -1)), 1)
        weights = torch.cat((weights, self.ones.expand(tokens, -1)), 1)
        return stream_swiglu(normed, experts, weights, self.gate_up, self.down)


def _rotate_(x: Float[Tensor, "*N F2"], unit: Complex[Tensor, "*N F"]) -> None:
    """Turn neighbours as `rope.rotate` does, in place."""
    torch.view_as_complex(x.unflatten(-1, (-1, 2))).mul_(unit)
