"""Choosing experts: scores, group limit, selection bias, gate weights, load (V3 2.1.2)."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import BFloat16, Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from fathom.kernels.dispatch import fastest
from fathom.kernels.fuse import fused
from fathom.kernels.gemm import product, wide_product


class Routed(NamedTuple):
    """What `route` returns."""

    scores: Tensor  # (N, E), differentiable: what the balance loss reads
    experts: Tensor  # (N, K) int64, the best first
    weights: Tensor  # (N, K), differentiable
    load: Tensor  # (E,) int32, how many token-expert pairs each expert received


def router_logits(x: Float[Tensor, "N D"], weight: Float[Tensor, "E D"]) -> Float[Tensor, "N E"]:
    """x @ weight.T in float32 or wider, whatever x comes in."""
    if x.is_cuda and x.dtype == torch.bfloat16:
        return _NarrowLogits.apply(x, weight)  # pyright: ignore[reportReturnType]
    wide = torch.promote_types(x.dtype, torch.float32)
    return F.linear(x.to(wide), weight.to(wide))


class _NarrowLogits(torch.autograd.Function):
    """A float32 weight is the sum of three bfloat16 ones, so tensor cores multiply a bfloat16 x by it exactly.

    Only sums are rounded, to float32. Gradients are products of bfloat16 numbers, as those of every other weight are.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return wide_product(x, thirds(weight).T).unflatten(1, (3, -1)).sum(1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight = ctx.saved_tensors
        grad = grads[0].to(x.dtype)
        return product(grad, weight.to(x.dtype)), wide_product(grad.T, x).to(weight.dtype)


def thirds(weight: Float[Tensor, "E D"]) -> BFloat16[Tensor, "E3 D"]:
    """Three bfloat16 matrices, one below the other, that add up to the float32 one."""
    high = weight.bfloat16()
    rest = weight.float() - high.float()
    middle = rest.bfloat16()
    return torch.cat((high, middle, (rest - middle.float()).bfloat16()))


def router_scores(logits: Float[Tensor, "N E"], scoring: str) -> Float[Tensor, "N E"]:
    """Affinity of each token to each expert: sigmoid (V3) or softmax over the experts (V2)."""
    return logits.sigmoid() if scoring == "sigmoid" else logits.softmax(-1)


def choose_experts(
    choice: Float[Tensor, "N E"], k: int, n_group: int = 1, topk_group: int = 1, group_top: int = 2
) -> Int[Tensor, "N K"]:
    """The k best experts of each token, from its `topk_group` best groups of consecutive experts.

    `choice` is the score plus the selection bias. A group is scored by the sum of its `group_top` best
    (2 in V3, 1 in V2); experts of the other groups are masked with -inf, because a biased score may be negative.
    """
    if topk_group < n_group:
        groups = choice.unflatten(-1, (n_group, -1))  # (N, n_group, E / n_group)
        score = best(groups, group_top)[0].sum(-1)
        kept = chosen_mask(score, topk_group)
        choice = groups.masked_fill(~kept.unsqueeze(-1), float("-inf")).flatten(1)
    return best(choice, k)[1]


def best(x: Float[Tensor, "*N E"], k: int) -> tuple[Float[Tensor, "*N K"], Int[Tensor, "*N K"]]:
    """The k largest entries of each row in order, and where they stand.

    A compiled kernel takes one maximum after the other from registers; torch's own would start two kernels that sort.
    """
    if not torch.compiler.is_compiling():
        top = x.topk(k, dim=-1)
        return top.values, top.indices
    entries = torch.arange(x.shape[-1], device=x.device)
    values: list[Tensor] = []
    places: list[Tensor] = []
    for _ in range(k):
        place = x.argmax(-1, keepdim=True)
        values.append(x.amax(-1, keepdim=True))
        places.append(place)
        x = x.masked_fill(entries == place, float("-inf"))
    return torch.cat(values, -1), torch.cat(places, -1)


def chosen_mask(x: Float[Tensor, "*N E"], k: int) -> Bool[Tensor, "*N E"]:
    """True at the k largest entries of each row."""
    places = best(x, k)[1]
    if not torch.compiler.is_compiling():
        return torch.zeros_like(x, dtype=torch.bool).scatter_(-1, places, True)
    entries = torch.arange(x.shape[-1], device=x.device)
    return (places.unsqueeze(-1) == entries).any(-2)


def gate_weights(
    scores: Float[Tensor, "N E"], experts: Int[Tensor, "N K"], normalise: bool, scale: float
) -> Float[Tensor, "N K"]:
    """Unbiased scores of the chosen experts, normalised over them and scaled (V3 eq. 13)."""
    weights = scores.gather(1, experts)
    if normalise:
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
    return weights * scale if scale != 1.0 else weights


@fastest
def route(
    logits: Float[Tensor, "N E"],
    bias: Float[Tensor, " E"] | None,
    k: int,
    scoring: str = "sigmoid",
    n_group: int = 1,
    topk_group: int = 1,
    group_top: int = 2,
    normalise: bool = True,
    scale: float = 1.0,
) -> Routed:
    """Scores, the k experts of the best biased scores, their gate weights and their load, in one go.

    `bias` moves the choice alone and has no gradient. See `choose_experts` and `gate_weights`.
    """
    scores = router_scores(logits, scoring)
    with torch.no_grad():
        experts = choose_experts(scores if bias is None else scores + bias, k, n_group, topk_group, group_top)
        flat = experts.flatten()
        load = torch.zeros(logits.shape[1], dtype=torch.int32, device=logits.device)
        load.scatter_add_(0, flat, torch.ones_like(flat, dtype=torch.int32))
    return Routed(scores, experts, gate_weights(scores, experts, normalise, scale), load)


@fused
def row_balance_loss(scores: Float[Tensor, "B T E"], k: int) -> Float[Tensor, ""]:
    """`sequence_balance_loss` of whole rows in which every token counts."""
    return sequence_balance_loss(scores, k)


def expert_load(
    experts: Int[Tensor, "N K"], n_experts: int, valid: Float[Tensor, " N"] | None = None
) -> Int[Tensor, " E"]:
    """How many token-expert pairs each expert received, of the tokens that `valid` marks or of all."""
    if not experts.is_cuda:
        counted = experts if valid is None else experts[valid > 0]
        return torch.bincount(counted.flatten(), minlength=n_experts)
    # whole numbers add up to the same in any order, and the host need not know how many are valid
    pairs = torch.ones_like(experts) if valid is None else (valid > 0).long().unsqueeze(1).expand_as(experts)
    return experts.new_zeros(n_experts).scatter_add_(0, experts.flatten(), pairs.flatten())


def sequence_balance_loss(
    scores: Float[Tensor, "B T E"],
    k: int,
    valid: Float[Tensor, "B T"] | None = None,
    sum_parts: Callable[[Sequence[Tensor]], None] | None = None,
) -> Float[Tensor, ""]:
    """sum_i f_i P_i averaged over sequences; 1 under uniform routing (V3 eq. 17-20).

    f_i counts raw scores only: the selection bias stays out of it. `valid` marks the tokens that count. Where the
    sequences are spread over processes, `sum_parts` replaces tensors by their sums over these; the losses of all of
    them then add up to that of the whole sequences, and so do the gradients: f_i has none, and P_i is a sum.
    """
    n_experts = scores.shape[-1]
    shares = scores / scores.sum(-1, keepdim=True)
    chosen = chosen_mask(scores.detach(), k).to(scores.dtype)
    if sum_parts is not None:
        weight = torch.ones_like(scores[..., :1]) if valid is None else valid.unsqueeze(-1)  # (B, T, 1)
        counts = (chosen * weight).sum(1)
        sum_parts([counts])
        tokens = (counts.sum(-1, keepdim=True) / k).clamp(min=1)  # of the whole sequence
        frequency, probability = counts / tokens, (shares * weight).sum(1) / tokens
    elif valid is None:
        frequency, probability = chosen.mean(1), shares.mean(1)
    else:
        weight = (valid / valid.sum(1, keepdim=True).clamp(min=1)).unsqueeze(-1)  # (B, T, 1)
        frequency, probability = (chosen * weight).sum(1), (shares * weight).sum(1)
    return (frequency.detach() * (n_experts / k) * probability).sum(-1).mean()
