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

STD_EPS = 1e-6  # added to a group's standard deviation
MAX_LOG_RATIO = 20.0  # exponents are clamped here: e^20 = 4.9e8 stays finite in every sum


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


def kl(
    logp: Float[Tensor, "*N"],
    ref_logp: Float[Tensor, "*N"],
    estimator: str,
    old_logp: Float[Tensor, "*N"] | None = None,
) -> Float[Tensor, "*N"]:
    """Per-token estimate of KL(policy || reference) for use in a loss, from tokens the policy drew.

    "k2", (log p - log r)^2 / 2, and "k3_weighted", k3 times the ratio to the policy that sampled (V3.2),
    have the true gradient in expectation. "k3", r/p - log(r/p) - 1 (DeepSeekMath eq. 4), has the true value
    but another gradient. k1 = log p - log r has none at all in expectation, so it is refused. `old_logp` is
    the log-probability at sampling; None takes the current one.
    """
    logp, ref_logp = logp.float(), ref_logp.float()
    gap = ref_logp - logp
    match estimator:
        case "k2":
            return gap.square() / 2
        case "k3":
            return _bounded_exp(gap) - gap - 1
        case "k3_weighted":
            old_logp = logp.detach() if old_logp is None else old_logp.float()
            return _bounded_exp(logp - old_logp) * (_bounded_exp(gap) - gap - 1)
        case _:
            raise ValueError(f"kl_estimator={estimator!r} cannot stand in a loss; choose k2, k3_weighted or k3")


def sampling_weight(
    logp: Float[Tensor, "N T"], sampled_logp: Float[Tensor, "N T"], cap: float = 2.0
) -> Float[Tensor, "N T"]:
    """min(p_training / p_sampling, cap) per token, detached: corrects for a sampler that computes differently.

    It belongs to the policy term alone, once (truncated importance sampling; 2 is its authors' GSM8K cap).
    """
    return _bounded_exp(logp.detach().float() - sampled_logp.float()).clamp(max=cap)


def policy_loss(
    logp: Float[Tensor, "N T"],
    old_logp: Float[Tensor, "N T"] | None,
    advantages: Float[Tensor, " N"],
    mask: Bool[Tensor, "N T"],
    objective: ObjectiveConfig,
    denominator: Int[Tensor, ""] | int,
    ref_logp: Float[Tensor, "N T"] | None = None,
    weight: Float[Tensor, "N T"] | None = None,
) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
    """Clipped policy loss of one micro-batch, divided by the global `denominator`, and its metrics.

    Add the losses (or gradients) of all micro-batches and workers; nothing more is to be divided. With one
    update per batch pass None for `old_logp`: the ratio is then exactly 1. With several, freeze it before the
    first. Values under the mask may be anything. A batch without trained tokens gives a loss of zero.
    The metrics are detached sums over trained tokens; `metric_means` turns their totals into shares.
    """
    if objective.kl_beta > 0 and ref_logp is None:
        raise ValueError(
            f"objective.kl_beta={objective.kl_beta} needs the reference's log-probabilities; pass ref_logp"
        )
    logp = logp.float().where(mask, 0.0)
    old_logp = logp.detach() if old_logp is None else old_logp.detach().float().where(mask, 0.0)
    ratio = _bounded_exp(logp - old_logp)
    advantage = advantages.float().unsqueeze(1).expand_as(ratio)  # (N, T)
    gain = _clipped_gain(ratio, advantage, objective)
    loss = -gain if weight is None else -gain * weight.detach().float().where(mask, 0.0)
    metrics = _clip_counts(ratio.detach(), advantage, mask, objective)
    if ref_logp is not None:
        ref_logp = ref_logp.detach().float().where(mask, 0.0)
        metrics["kl"] = kl(logp.detach(), ref_logp, "k3").sum()
        if objective.kl_beta > 0:
            loss = loss + objective.kl_beta * kl(logp, ref_logp, objective.kl_estimator, old_logp)
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


def _bounded_exp(x: Tensor) -> Tensor:
    return x.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()


def _clipped_gain(ratio: Tensor, advantage: Tensor, objective: ObjectiveConfig) -> Tensor:
    clipped = ratio.clamp(1 - objective.clip_low, 1 + objective.clip_high)
    gain = torch.minimum(ratio * advantage, clipped * advantage)
    if objective.clip_dual > 0:
        capped = torch.maximum(gain, objective.clip_dual * advantage)
        gain = capped.where(advantage < 0, gain)
    return gain


def _clip_counts(ratio: Tensor, advantage: Tensor, mask: Tensor, objective: ObjectiveConfig) -> dict[str, Tensor]:
    """Trained tokens, and those among them whose gradient a clip has cut, by the sign of their advantage."""
    counts = {
        "tokens": mask,
        "clip_high": mask & (advantage > 0) & (ratio > 1 + objective.clip_high),
        "clip_low": mask & (advantage < 0) & (ratio < 1 - objective.clip_low),
    }
    if objective.clip_dual > 0:
        counts["clip_dual"] = mask & (advantage < 0) & (ratio > objective.clip_dual)
    return {name: tokens.sum() for name, tokens in counts.items()}
