"""What a token gains by its ratio and advantage, and where a clip cuts its gradient: PPO's form, GSPO's and CISPO's."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fathom.config import ObjectiveConfig
from fathom.rl.ratios import bounded_exp, mean_per_answer


def policy_gain(
    logp: Float[Tensor, "N T"],
    old_logp: Float[Tensor, "N T"],
    advantage: Float[Tensor, "N T"],
    mask: Bool[Tensor, "N T"],
    objective: ObjectiveConfig,
) -> tuple[Float[Tensor, "N T"], dict[str, Tensor]]:
    """What is to be maximised at every token, and counts of the tokens that a clip cuts.

    "token" clips each token's ratio p / p_old (PPO, DeepSeekMath 4.1). "sequence" clips one ratio for all tokens of an
    answer, exp(mean log ratio) (GSPO 4.2). "weight" multiplies log p by the clipped ratio as a constant, so that every
    token keeps a gradient (CISPO, MiniMax-M1 3.1).
    """
    log_ratio = logp - old_logp
    if objective.surrogate == "sequence":
        log_ratio = mean_per_answer(log_ratio, mask).expand_as(logp)
    ratio = bounded_exp(log_ratio)
    clipped = ratio.clamp(1 - objective.clip_low, 1 + objective.clip_high)
    counts = _clip_counts(ratio.detach(), advantage, mask, objective)
    if objective.surrogate == "weight":
        return clipped.detach() * advantage * logp, counts
    gain = torch.minimum(ratio * advantage, clipped * advantage)
    if objective.clip_dual > 0:
        capped = torch.maximum(gain, objective.clip_dual * advantage)
        gain = capped.where(advantage < 0, gain)
    return gain, counts


def _clip_counts(ratio: Tensor, advantage: Tensor, mask: Tensor, objective: ObjectiveConfig) -> dict[str, Tensor]:
    """Trained tokens, and those among them that a clip changes: in PPO's form only those whose gradient it cuts."""
    if objective.surrogate == "weight":
        rising = falling = mask
    else:
        rising, falling = mask & (advantage > 0), mask & (advantage < 0)
    counts = {
        "tokens": mask,
        "clip_high": rising & (ratio > 1 + objective.clip_high),
        "clip_low": falling & (ratio < 1 - objective.clip_low),
    }
    if objective.clip_dual > 0:
        counts["clip_dual"] = falling & (ratio > objective.clip_dual)
    return {name: tokens.sum() for name, tokens in counts.items()}
