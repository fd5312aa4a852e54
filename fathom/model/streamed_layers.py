"""Attention and feed-forward layers over tables of `fathom.kernels.stream`, each with the norm before it.

The arithmetic is that of `mla`, `ffn` and `moe`. The gain of a norm is multiplied into the matrices that read it, and
matrices that read the same vector lie side by side.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Complex, Float, Int
from torch import Tensor

from fathom.kernels.router import choose_experts, gate_weights, router_scores
from fathom.kernels.stream import FEW, stream, stream_swiglu, table
from fathom.model.cache import Slots
from fathom.model.ffn import SwiGLU
from fathom.model.linear import RMSNorm
from fathom.model.mla import MLA
from fathom.model.moe import MoE

FOLDED = 1 << 17  # elements that arrive from memory in the time that a product of small matrices takes


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

    def read_by(self, *weights: Float[Tensor, "_ D"]) -> Float[Tensor, "D P"]:
        """The matrices that read the norm, side by side, with its gain in them."""
        return (torch.cat(weights) * self.gain).T


class StreamedMLA:
    """Absorbed latent attention of a few tokens over a cache that holds those before them.

    Where they are small, W_UK is multiplied into the projection of the queries and W_UV into that of the output: more
    to read, but two products fewer.
    """

    def __init__(self, mla: MLA, norm: RMSNorm, int8: bool) -> None:
        a = self.config = mla.config
        self.layer, self.scale = mla.layer, mla.scale
        self.norm, self.latent_norm = Norm(norm), Norm(mla.kv_a_norm)
        weight = mla.kv_b_proj.weight.view(a.num_attention_heads, -1, a.kv_lora_rank)
        w_uk, w_uv = weight.split((a.qk_nope_head_dim, a.v_head_dim), dim=1)  # (H, nope, R), (H, v, R)
        q_weight = mla.q_proj.weight if a.q_lora_rank is None else mla.q_b_proj.weight
        q_weight, self.w_uk = _absorb_keys(q_weight, w_uk, a.qk_rope_head_dim)
        out, self.w_uv = _absorb_values(mla.o_proj.weight, w_uv)
        self.query_norm = self.queries = None
        first = q_weight
        if a.q_lora_rank is not None:
            first = mla.q_a_proj.weight
            self.query_norm = Norm(mla.q_a_norm)
            self.queries = table(self.query_norm.read_by(q_weight), int8)
        self.inputs = table(self.norm.read_by(first, mla.kv_a_proj.weight), int8)
        self.widths = (first.shape[0], a.cache_width)
        self.out = table(out.T, int8)

    def __call__(self, x: Float[Tensor, "N D"], unit: Complex[Tensor, "N 1 F"], slots: Slots) -> Float[Tensor, "N D"]:
        a, tokens, (batch, time) = self.config, x.shape[0], slots.positions.shape
        inputs = stream(self.norm(x), self.inputs)
        query, latents = inputs.split_with_sizes(self.widths, 1)
        latent = latents.narrow(1, 0, a.kv_lora_rank)
        latent.div_(self.latent_norm.length(latent)).mul_(self.latent_norm.gain)
        _rotate_end_(latents.unsqueeze(1), unit)
        if self.query_norm is not None and self.queries is not None:
            query = stream(self.query_norm(query), self.queries)
        q = query.view(tokens, a.num_attention_heads, -1)
        _rotate_end_(q, unit)
        if self.w_uk is not None:
            q = torch.cat((_per_head(q[..., : a.qk_nope_head_dim], self.w_uk), q[..., a.qk_nope_head_dim :]), dim=-1)
        q = q.view(batch, time, a.num_attention_heads, -1)
        out = slots.attend(self.layer, latents.view(batch, time, -1), q, a.kv_lora_rank, self.scale).view(
            tokens, a.num_attention_heads, -1
        )
        if self.w_uv is not None:
            out = _per_head(out, self.w_uv)
        return stream(out.reshape(tokens, -1), self.out)


def _absorb_keys(
    weight: Float[Tensor, "O I"], w_uk: Float[Tensor, "H P R"], rope_dim: int
) -> tuple[Float[Tensor, "Q I"], Float[Tensor, "H P R"] | None]:
    """The projection that gives absorbed queries and no W_UK behind it; or both as they are, if that is smaller."""
    heads, nope, rank = w_uk.shape
    if heads * (rank + rope_dim) * weight.shape[1] > weight.numel() + w_uk.numel() + FOLDED:
        return weight, w_uk.contiguous()
    plain, turned = weight.view(heads, nope + rope_dim, -1).split((nope, rope_dim), dim=1)
    return torch.cat((torch.bmm(w_uk.transpose(1, 2), plain), turned), dim=1).flatten(0, 1), None


def _absorb_values(
    weight: Float[Tensor, "D O"], w_uv: Float[Tensor, "H V R"]
) -> tuple[Float[Tensor, "D P"], Float[Tensor, "H R V"] | None]:
    """The projection that reads latent contexts, and no W_UV for before it; or both, if that is smaller."""
    heads, _, rank = w_uv.shape
    if weight.shape[0] * heads * rank > weight.numel() + w_uv.numel() + FOLDED:
        return weight, w_uv.transpose(1, 2).contiguous()
    per_head = weight.unflatten(1, (heads, -1)).transpose(0, 1)  # (H, D, V)
    return torch.bmm(per_head, w_uv).transpose(0, 1).flatten(1), None


def _per_head(x: Float[Tensor, "N H I"], weight: Float[Tensor, "H I O"]) -> Float[Tensor, "N H O"]:
    return torch.bmm(x.transpose(0, 1), weight).transpose(0, 1)


class StreamedSwiGLU:
    """A dense feed-forward layer."""

    def __init__(self, layer: SwiGLU, norm: RMSNorm, int8: bool) -> None:
        self.norm = Norm(norm)
        self.gate_up = table(self.norm.read_by(layer.gate_up.weight), int8)
        self.down = table(layer.down.weight.T, int8)

    def __call__(self, x: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
        return _swiglu(self.norm(x), self.gate_up, self.down)


class StreamedMoE:
    """Routed experts, and behind them in the same tables the shared ones, which every token chooses with weight 1.

    Many tokens take the shared ones by themselves, as one layer that all pass.
    """

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
        self.shared = torch.arange(c.n_routed_experts, len(gate_up)).repeat(FEW, 1)  # (FEW, S)
        self.ones = torch.ones(self.shared.shape)
        self.gate_up = table((gate_up * self.norm.gain).transpose(1, 2).flatten(0, 1), int8)
        self.down = table(down.flatten(0, 1), int8)
        self.shared_tables = [
            (self.gate_up[e * gate_up.shape[2] :][: gate_up.shape[2]], self.down[e * down.shape[1] :][: down.shape[1]])
            for e in self.shared[0].tolist()
        ]

    def __call__(self, x: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
        return self.route(x)[0]

    def route(self, x: Float[Tensor, "N D"]) -> tuple[Float[Tensor, "N D"], Int[Tensor, "N K"]]:
        """What the layer adds, and the routed experts that it chose."""
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
        if tokens > FEW:
            out = stream_swiglu(normed, experts, weights, self.gate_up, self.down)
            for gate_up, down in self.shared_tables:
                out.add_(_swiglu(normed, gate_up, down))
            return out, experts
        chosen = torch.cat((experts, self.shared[:tokens]), 1)
        weights = torch.cat((weights, self.ones[:tokens]), 1)
        return stream_swiglu(normed, chosen, weights, self.gate_up, self.down), experts


def _swiglu(x: Float[Tensor, "N D"], gate_up: Tensor, down: Tensor) -> Float[Tensor, "N D"]:
    gate, up = stream(x, gate_up).chunk(2, dim=-1)
    return stream(F.silu(gate).mul_(up), down)


def _rotate_end_(x: Float[Tensor, "N H W"], unit: Complex[Tensor, "N 1 F"]) -> None:
    """Turn the neighbours among the last 2 F entries as `rope.rotate` does, in place."""
    pairs = x.view(torch.complex64)
    pairs.narrow(2, pairs.shape[2] - unit.shape[2], unit.shape[2]).mul_(unit)
