"""DeepSeekMoE: shared and routed experts, kept in balance by a selection bias (V3 2.1.2)."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from fathom.config import ModelConfig
from fathom.kernels.fp8 import Fp8Layer
from fathom.kernels.fp8_experts import fp8_grouped_swiglu
from fathom.kernels.grouped import grouped_swiglu
from fathom.kernels.router import (
    Routed,
    expert_load,
    gate_weights,
    route,
    router_logits,
    row_balance_loss,
    sequence_balance_loss,
)
from fathom.model.ffn import SwiGLU
from fathom.model.recompute import recomputed_cheaply
from fathom.model.routing import RoutingTrace
from fathom.parallel.experts import through_experts
from fathom.parallel.mesh import ALONE, Axis
from fathom.parallel.replicas import Replicas


class Router(nn.Module):
    """Scores tokens against experts in float32 or wider; its selection bias is moved by load, never by a gradient."""

    selection_bias: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config.moe
        self.weight = nn.Parameter(torch.empty(config.moe.n_routed_experts, config.hidden_size))
        self.register_buffer("selection_bias", torch.zeros(config.moe.n_routed_experts))

    def forward(self, x: Float[Tensor, "N D"], replay: Int[Tensor, "N K"] | None = None) -> Routed:
        """Scores (N, E), chosen experts (N, K), their gate weights (N, K) and their load.

        Experts of `replay` take the place of the choice where they are not -1.
        """
        c = self.config
        groups = (1, 1) if c.topk_method == "greedy" else (c.n_group, c.topk_group)
        bias, best = (self.selection_bias, 2) if c.has_selection_bias else (None, 1)
        form = c.norm_topk_prob, c.routed_scaling_factor
        with torch.autocast(x.device.type, enabled=False):
            logits = router_logits(x, self.weight)
            routed = route(logits, bias, c.num_experts_per_tok, c.scoring_func, *groups, best, *form)
        if replay is None:
            return routed
        experts = torch.where(replay >= 0, replay, routed.experts)
        weights = gate_weights(routed.scores, experts, *form)
        return Routed(routed.scores, experts, weights, expert_load(experts, c.n_routed_experts))


class MoE(nn.Module):
    """Every token passes the shared experts and its K routed ones."""

    fp8: Fp8Layer | None = None  # set by `precision.use_fp8`
    context: Axis = ALONE  # over which rows are spread; set by `Transformer.spread_rows`
    axis: Axis = ALONE  # the processes over which the experts are spread; set by `parallelize`, as is the next
    fp8_dispatch: bool = False
    replicas: Replicas | None = None  # the slots that serve the experts; set by `ServedExperts`
    pause: Callable[[], None] | None = None  # called while tokens travel; set by `pipeline.pause_in_experts`

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        c = config.moe
        self.config = c
        self.router = Router(config)
        self.gate_up = nn.Parameter(torch.empty(c.n_routed_experts, 2 * c.moe_intermediate_size, config.hidden_size))
        self.down = nn.Parameter(torch.empty(c.n_routed_experts, config.hidden_size, c.moe_intermediate_size))
        shared_width = c.n_shared_experts * c.moe_intermediate_size  # shared experts are one wide one
        self.shared = SwiGLU(config.hidden_size, shared_width) if shared_width else None

    def forward(
        self, x: Float[Tensor, "B T D"], trace: RoutingTrace | None = None, recompute_shared: bool = False
    ) -> Float[Tensor, "B T D"]:
        tokens = x.flatten(0, 1)
        routed: Routed = self.router(tokens, None if trace is None else self._recorded(trace, tokens))
        _, experts, weights, _ = routed
        if self.replicas is not None:
            apply = partial(self._experts, some_elsewhere=True)
            out = self.replicas.through(tokens, experts, weights, apply).view_as(x)
        elif self.axis.size == 1:
            out = self._experts(tokens, experts, weights).view_as(x)
        else:
            everywhere = self.config.n_routed_experts
            apply = partial(self._experts, some_elsewhere=True)
            way = self.axis, apply, self.fp8_dispatch, self.pause
            out = through_experts(tokens, experts, weights, everywhere, *way).view_as(x)
        if trace is not None:
            self._note(trace, routed, x.shape[:2])
        if self.shared is None:
            return out
        return out + (recomputed_cheaply(self.shared, x) if recompute_shared else self.shared(x))

    def _experts(self, tokens: Tensor, experts: Tensor, weights: Tensor, some_elsewhere: bool = False) -> Tensor:
        """(N, D) what this process's experts say of the tokens."""
        gate_up, down = (p.to_local() if isinstance(p, DTensor) else p for p in (self.gate_up, self.down))
        if self.fp8 is None:
            return grouped_swiglu(tokens, experts, weights, gate_up, down, some_elsewhere)
        return fp8_grouped_swiglu(tokens, experts, weights, gate_up, down, self.fp8, some_elsewhere)

    def _recorded(self, trace: RoutingTrace, tokens: Float[Tensor, "N D"]) -> Int[Tensor, "N K"] | None:
        """The experts that the trace holds for this layer, the next one in order."""
        layer = len(trace.loads)
        if trace.replay is None or layer >= len(trace.replay):
            return None
        experts = trace.replay[layer].flatten(0, 1)
        wanted = (len(tokens), self.config.num_experts_per_tok)
        if experts.shape != wanted:
            raise ValueError(
                f"the recorded experts of MoE layer {layer} have the shape {tuple(experts.shape)}, but its tokens ask "
                f"for {wanted}; replay what this model recorded for this very batch"
            )
        return experts.to(tokens.device)

    def _note(self, trace: RoutingTrace, routed: Routed, shape: torch.Size) -> None:
        # an MTP module sees the row without its first tokens
        valid = None if trace.valid is None else trace.valid[:, -shape[1] :]
        if trace.records:
            trace.experts.append(routed.experts.view(*shape, -1))
        if valid is None:
            trace.loads.append(routed.load.long())
        else:
            trace.loads.append(expert_load(routed.experts, self.config.n_routed_experts, valid.flatten()))
        if self.config.seq_aux_alpha:
            trace.balance.append(self._balance(routed.scores.view(*shape, -1), valid))

    def _balance(self, scores: Float[Tensor, "B T E"], valid: Tensor | None) -> Float[Tensor, ""]:
        k = self.config.num_experts_per_tok
        if self.context.size > 1:
            return sequence_balance_loss(scores, k, valid, self.context.sum)
        return row_balance_loss(scores, k) if valid is None else sequence_balance_loss(scores, k, valid)


def moe_layers(model: nn.Module) -> Iterator[MoE]:
    """The MoE layers in the order in which a forward pass meets them."""
    return (module for module in model.modules() if isinstance(module, MoE))


@torch.no_grad()
def update_selection_bias(model: nn.Module, loads: Int[Tensor, "L E"], speed: float) -> None:
    """Raise the bias of under-loaded experts by `speed` and lower that of over-loaded ones (V3 2.1.2).

    Called once per optimizer step with the loads of the whole batch over all ranks. A step that leaves the MTP
    modules out has no loads of theirs, and their biases stay.
    """
    for layer, load in zip(moe_layers(model), loads.float(), strict=False):
        if layer.config.has_selection_bias:
            layer.router.selection_bias += speed * (load.mean() - load).sign()


def max_violation(loads: Int[Tensor, "L E"]) -> Float[Tensor, " L"]:
    """MaxVio of every layer: how far the busiest expert exceeds the mean load, as a share of it."""
    load = loads.float()
    return load.amax(-1) / load.mean(-1).clamp(min=1e-9) - 1
