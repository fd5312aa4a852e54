"""Group relative policy optimisation as pure functions on tensors (DeepSeekMath 4.1), all in float32.

One batch is N completions padded to T tokens. `mask` marks the tokens that are trained: a completion's own
tokens up to and including its end of sequence. Sums, never means, leave this file, so that micro-batches and
workers add up to exactly one large batch.
"""

from typing import cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fathom.config import ObjectiveConfig
from fathom.rl.divergence import kl
from fathom.rl.surrogate import policy_gain

STD_EPS = 1e-6  # added to a group's standard deviation


def advantages(
    rewards: Float[Tensor, " N"],
    groups: Int[Tensor, " N"],
    objective: ObjectiveConfig,
    eps: float = STD_EPS,
) -> Float[Tensor, " N"]:
    """Reward minus the mean of its group, for "mean_std" divided by std + eps (n - 1 in the std).

    `groups` holds one id per sampled question: two draws of one question are two groups. A group whose
    rewards are exactly equal gets exactly zero: its std is rounding noise, 6e-8 for eight rewards of 0.7, and
    would divide noise by noise. Rewards that are not finite (an answer nobody could grade) are left out of
    the baseline and get zero; mask their tokens too.
    """
    rewards = rewards.float()
    graded = rewards.isfinite()
    index, n_groups = _group_index(groups)

    def total(x: Tensor) -> Tensor:
        return torch.zeros(n_groups, device=x.device).index_add_(0, index, x.where(graded, 0.0))

    counts = total(torch.ones_like(rewards))
    centred = rewards - (total(rewards) / counts.clamp(min=1))[index]
    if objective.advantage == "mean_std":
        std = (total(centred.square()) / (counts - 1).clamp(min=1)).sqrt()
        centred = centred / (std[index] + eps)
    return centred.where(keep_groups(rewards, groups), 0.0)


def keep_groups(rewards: Float[Tensor, " N"], groups: Int[Tensor, " N"]) -> Bool[Tensor, " N"]:
    """Rows that can teach: graded, in a group with at least two different rewards, compared exactly.

    Pass raw rewards (or accuracy alone, as DAPO does), not ones shaped by a length penalty, whose small
    differences would keep every group.
    """
    rewards = rewards.float()
    graded = rewards.isfinite()
    index, n_groups = _group_index(groups)
    infinite = torch.full((n_groups,), torch.inf, device=rewards.device)
    low = infinite.scatter_reduce(0, index, rewards.where(graded, torch.inf), "amin")
    high = (-infinite).scatter_reduce(0, index, rewards.where(graded, -torch.inf), "amax")
    return (high > low)[index] & graded


def loss_mask(
    mask: Bool[Tensor, "N T"], truncated: Bool[Tensor, " N"], objective: ObjectiveConfig
) -> Bool[Tensor, "N T"]:
    """The tokens to train: all of `mask`, or without answers cut by length where `mask_truncated` says so.

    Those answers keep their place in the baseline. They leave every denominator with their tokens, so log
    how many there are.
    """
    return mask & ~truncated.unsqueeze(1) if objective.mask_truncated else mask


def denominator(mask: Bool[Tensor, "N T"], objective: ObjectiveConfig, max_tokens: int) -> Int[Tensor, ""]:
    """This batch's part of the number that divides the loss; add the parts of all workers first.

    "token": trained tokens. "sequence": answers with a trained token, each weighing the same. "constant":
    those answers times `max_tokens`, so that no answer's length changes its weight (Dr. GRPO).
    """
    match objective.aggregation:
        case "token":
            return mask.sum()
        case "sequence":
            return mask.any(1).sum()
        case "constant":
            return mask.any(1).sum() * max_tokens


def policy_loss(
    logp: Float[Tensor, "N T"],
    old_logp: Float[Tensor, "N T"] | None,
    advantages: Float[Tensor, " N"] | Float[Tensor, "N T"],
    mask: Bool[Tensor, "N T"],
    objective: ObjectiveConfig,
    denominator: Int[Tensor, ""] | int,
    ref_logp: Float[Tensor, "N T"] | None = None,
    weight: Float[Tensor, "N T"] | None = None,
    entropy: Float[Tensor, "N T"] | None = None,
) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
    """Clipped policy loss of one micro-batch, divided by the global `denominator`, and its metrics.

    `weight` multiplies the policy term alone; it and `advantages` are constants. `entropy`, with its gradient, is
    needed where the objective weighs it.

    Add the losses (or gradients) of all micro-batches and workers; nothing more is to be divided. With one
    update per batch pass None for `old_logp`: the ratio is then exactly 1. With several, freeze it before the
    first. Values under the mask may be anything. A batch without trained tokens gives a loss of zero.
    The metrics are detached sums over trained tokens; `metric_means` turns their totals into shares.
    """
    in_loss = objective.kl_beta > 0 and objective.kl_in == "loss"
    if in_loss and ref_logp is None:
        raise ValueError(
            f"objective.kl_beta={objective.kl_beta} needs the reference's log-probabilities; pass ref_logp"
        )
    if objective.entropy_weight and entropy is None:
        raise ValueError(f"objective.entropy_weight={objective.entropy_weight} needs the entropies; pass entropy")
    logp = logp.float().where(mask, 0.0)
    old_logp = logp.detach() if old_logp is None else old_logp.detach().float().where(mask, 0.0)
    advantage = advantages.detach().float()
    advantage = advantage.unsqueeze(1).expand_as(logp) if advantage.ndim == 1 else advantage  # (N, T)
    gain, metrics = policy_gain(logp, old_logp, advantage, mask, objective)
    loss = -gain if weight is None else -gain * weight.detach().float().where(mask, 0.0)
    if ref_logp is not None:
        ref_logp = ref_logp.detach().float().where(mask, 0.0)
        metrics["kl"] = kl(logp.detach(), ref_logp, "k3").sum()
        if in_loss:
            loss = loss + objective.kl_beta * kl(logp, ref_logp, objective.kl_estimator, old_logp)
    if objective.entropy_weight and entropy is not None:
        loss = loss - objective.entropy_weight * entropy.float()
    rows = loss.where(mask, 0.0).sum(1)
    if objective.aggregation == "sequence":
        rows = rows / mask.sum(1).clamp(min=1)
    return rows.sum() / torch.as_tensor(denominator).clamp(min=1), metrics


def metric_means(sums: dict[str, Tensor]) -> dict[str, float]:
    """Shares and means per trained token, from the added-up metrics of `policy_loss`."""
    tokens = max(float(sums["tokens"]), 1.0)
    means = {name: float(value) / tokens for name, value in sums.items() if name != "tokens"}
    return means | {"clip_share": sum(share for name, share in means.items() if name.startswith("clip_"))}


def overlong_penalty(lengths: Int[Tensor, " N"], max_tokens: int, cache_tokens: int) -> Float[Tensor, " N"]:
    """DAPO's soft punishment: 0 up to `max_tokens - cache_tokens`, falling to -1 at `max_tokens` and staying."""
    return ((max_tokens - cache_tokens - lengths).float() / cache_tokens).clamp(-1.0, 0.0)


def lengths_by_outcome(lengths: Int[Tensor, " N"], accuracy: Float[Tensor, " N"]) -> dict[str, float]:
    """Mean length in tokens of all answers and, apart, of correct and of wrong ones, where there are any.

    Only so does a length bias show: wrong answers that grow while correct ones do not (Dr. GRPO 3.1).
    Answers nobody could grade (NaN) count among all, and on neither side.
    """
    sides = {
        "length": torch.ones_like(accuracy, dtype=torch.bool),
        "length_correct": accuracy == 1,
        "length_wrong": accuracy < 1,
    }
    return {name: float(lengths[rows].float().mean()) for name, rows in sides.items() if bool(rows.any())}


def _group_index(groups: Tensor) -> tuple[Tensor, int]:
    """Groups numbered from 0 without gaps, and how many there are."""
    ids, index = cast(tuple[Tensor, Tensor], torch.unique(groups, return_inverse=True))
    return index, len(ids)
