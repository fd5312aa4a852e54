"""Choosing experts: scores, group limit, selection bias, gate weights, load (V3 2.1.2)."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor


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
        score = groups.topk(group_top, dim=-1).values.sum(-1)
        kept = torch.zeros_like(score, dtype=torch.bool).scatter_(1, score.topk(topk_group, dim=-1).indices, True)
        choice = groups.masked_fill(~kept.unsqueeze(-1), float("-inf")).flatten(1)
    return choice.topk(k, dim=-1).indices


def gate_weights(
    scores: Float[Tensor, "N E"], experts: Int[Tensor, "N K"], normalise: bool, scale: float
) -> Float[Tensor, "N K"]:
    """Unbiased scores of the chosen experts, normalised over them and scaled (V3 eq. 13)."""
    weights = scores.gather(1, experts)
    if normalise:
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
    return weights * scale if scale != 1.0 else weights


def expert_load(experts: Int[Tensor, "N K"], n_experts: int) -> Int[Tensor, " E"]:
    """How many token-expert pairs each expert received."""
    return torch.bincount(experts.flatten(), minlength=n_experts)


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
    chosen = torch.zeros_like(scores).scatter_(-1, scores.topk(k, dim=-1).indices, 1.0)
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
