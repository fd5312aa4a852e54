"""Weights of the policy term where the policy that sampled is not the one that trains."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fathom.config import ObjectiveConfig
from fathom.rl.ratios import bounded_exp, mean_per_answer, total_per_answer


def sampling_weight(
    logp: Float[Tensor, "N T"],
    sampled_logp: Float[Tensor, "N T"],
    mask: Bool[Tensor, "N T"],
    objective: ObjectiveConfig,
) -> Float[Tensor, "N T"]:
    """p_training / p_sampling, detached: corrects for a sampler that computes differently.

    Of each token, or of the whole answer as the product over its marked tokens; "truncate" takes at most
    `correction_cap` (truncated importance sampling), "mask" gives what exceeds it the weight 0. It belongs to the
    policy term alone, once; tokens of weight 0 still count in every denominator and answers in the baseline.
    """
    gap = logp.detach().float() - sampled_logp.float()
    if objective.correction_level == "sequence":
        gap = total_per_answer(gap, mask).expand_as(gap)
    weight = bounded_exp(gap)
    if objective.correction == "mask":
        return weight.where(weight <= objective.correction_cap, 0.0)
    return weight.clamp(max=objective.correction_cap)


def stale_answers(
    logp: Float[Tensor, "N T"],
    sampled_logp: Float[Tensor, "N T"],
    advantages: Float[Tensor, "N T"],
    mask: Bool[Tensor, "N T"],
    limit: float,
) -> Bool[Tensor, "N T"]:
    """Tokens with a negative advantage in answers that became rarer by more than `limit` nats a token (V3.2 3.1).

    What the policy no longer says teaches it nothing, and pushing it down further only disturbs the rest.
    """
    drift = mean_per_answer(sampled_logp.float() - logp.detach().float(), mask)
    return (drift > limit) & (advantages < 0) & mask


def policy_weight(
    logp: Float[Tensor, "N T"],
    old_logp: Float[Tensor, "N T"],
    sampled_logp: Float[Tensor, "N T"],
    advantages: Float[Tensor, "N T"],
    mask: Bool[Tensor, "N T"],
    objective: ObjectiveConfig,
) -> tuple[Float[Tensor, "N T"] | None, dict[str, Tensor]]:
    """The weight that the objective asks for, None where it is 1 everywhere, and what it changed, counted in tokens."""
    weight, counts = None, dict[str, Tensor]()
    if objective.correction != "none":
        weight = sampling_weight(old_logp, sampled_logp, mask, objective)
        limit = 0.0 if objective.correction == "mask" else objective.correction_cap
        counts["corrected"] = (mask & (weight == limit)).sum()
    if objective.stale_limit:
        stale = stale_answers(logp, sampled_logp, advantages, mask, objective.stale_limit)
        weight = torch.where(stale, 0.0, torch.ones_like(logp) if weight is None else weight)
        counts["stale"] = stale.sum()
    return weight, counts
