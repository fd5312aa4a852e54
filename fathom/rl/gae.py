"""Advantages from a critic, and the critic's own loss (GAE, PPO), as pure functions on padded answers."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fathom.parallel.world import World

WHITEN_EPS = 1e-8  # added to the variance of all advantages


def token_rewards(
    rewards: Float[Tensor, " N"], mask: Bool[Tensor, "N T"], penalty: Float[Tensor, "N T"] | None = None
) -> Float[Tensor, "N T"]:
    """An answer's reward at its last token, and `penalty` (a KL) taken off every token's."""
    last = mask & (mask.flip(1).cumsum(1).flip(1) == 1)
    paid = torch.where(last, rewards.float().unsqueeze(1), 0.0)
    return paid if penalty is None else paid - penalty.where(mask, 0.0)


def gae(
    rewards: Float[Tensor, "N T"],
    values: Float[Tensor, "N T"],
    mask: Bool[Tensor, "N T"],
    gamma: float,
    gae_lambda: float,
) -> tuple[Float[Tensor, "N T"], Float[Tensor, "N T"]]:
    """Generalised advantages (GAE eq. 16) and returns, advantage + value; 0 outside the mask.

    A row's marked tokens lie together. Behind the last one nothing follows and nothing is worth anything, whether the
    answer ended or was cut.
    """
    values, rewards = values.float().where(mask, 0.0), rewards.where(mask, 0.0)
    following = torch.nn.functional.pad(values[:, 1:], (0, 1))
    surprise = rewards + gamma * following - values
    ahead, found = torch.zeros_like(values[:, 0]), list[Tensor]()
    for at in range(values.shape[1] - 1, -1, -1):
        ahead = (surprise[:, at] + gamma * gae_lambda * ahead).where(mask[:, at], 0.0)
        found.append(ahead)
    advantages = torch.stack(found[::-1], 1)
    return advantages, (advantages + values).where(mask, 0.0)


def whiten(
    advantages: Sequence[Float[Tensor, "_ _"]], masks: Sequence[Bool[Tensor, "_ _"]], world: World
) -> list[Float[Tensor, "_ _"]]:
    """Advantages with mean 0 and variance 1 over the marked tokens of all micro-batches, each of its own (N, T)."""
    marked = [a[m].double() for a, m in zip(advantages, masks, strict=True)]
    tokens, total = world.sum_numbers(sum(len(a) for a in marked), sum(float(a.sum()) for a in marked))
    mean = total / max(tokens, 1)
    (squares,) = world.sum_numbers(sum(float((a - mean).square().sum()) for a in marked))
    scale = (squares / max(tokens - 1, 1) + WHITEN_EPS) ** -0.5
    return [((a - mean) * scale).where(m, 0.0) for a, m in zip(advantages, masks, strict=True)]


def value_loss(
    values: Float[Tensor, "N T"],
    old_values: Float[Tensor, "N T"],
    returns: Float[Tensor, "N T"],
    mask: Bool[Tensor, "N T"],
    clip: float,
    tokens: Int[Tensor, ""] | float,
) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
    """Half the squared error to the returns over `tokens`, all trained tokens of the step, and its parts.

    A value that has moved more than `clip` from its old one has no gradient away from it (PPO's clip of values).
    """
    values = values.float().where(mask, 0.0)
    error = (values - returns).square()
    cut = torch.zeros_like(mask)
    if clip:
        held = old_values + (values - old_values).clamp(-clip, clip)
        held_error = (held - returns).square()
        cut = mask & (held_error > error)
        error = torch.maximum(error, held_error)
    loss = error.where(mask, 0.0).sum() / (2 * torch.as_tensor(tokens).clamp(min=1))
    return loss, {"value_loss": loss.detach(), "value_clip": cut.sum()}
