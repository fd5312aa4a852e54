"""The losses of one micro-batch of answers: the policy's, that of the MTP drafts, and the critic's."""

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fathom.config import GRPOConfig
from fathom.kernels.cross_entropy import TokenLogprobs, token_logprobs
from fathom.model import RoutingTrace, Transformer
from fathom.model.shared import Shared, forward_shared
from fathom.rl.batch import GroupBatch, Notes
from fathom.rl.critic import Critic
from fathom.rl.divergence import kl
from fathom.rl.gae import gae, token_rewards, value_loss
from fathom.rl.grpo import loss_mask, policy_loss
from fathom.rl.off_policy import policy_weight
from fathom.rl.ratios import bounded_exp
from fathom.train.loop import Place
from fathom.train.loss import Losses


def policy_logprobs(
    model: Transformer, batch: GroupBatch, config: GRPOConfig, device: torch.device, trace: RoutingTrace | None = None
) -> tuple[Tensor, Tensor, TokenLogprobs]:
    """Hidden states (N, T, D), log-probabilities (N, T - 1) at the sampling temperature, and what came with them.

    Only places where the policy chose reach the head; elsewhere the log-probability is 0.
    """
    tokens = torch.from_numpy(batch.tokens).to(device)
    hidden = _states(model, tokens, batch, trace)
    at = torch.from_numpy(batch.mask).to(device).flatten().nonzero().squeeze(1)
    out = token_logprobs(
        hidden[:, :-1].flatten(0, 1).index_select(0, at),
        model.head_weight,
        tokens[:, 1:].flatten()[at],
        config.sampling.temperature,
        entropy=True,
    )
    return hidden, _placed(out.logprob, at, batch), out


@torch.no_grad()
def take_notes(
    model: Transformer,
    reference: Transformer | None,
    critic: Critic | None,
    batch: GroupBatch,
    config: GRPOConfig,
    place: Place,
) -> GroupBatch:
    """Note what the updates are judged against, in their own precision: log-probabilities, values, advantages."""
    device, objective = place.world.device, config.objective
    with torch.autocast(device.type, place.dtype, enabled=place.dtype != torch.float32):
        _, old, _ = policy_logprobs(model, batch, config, device, trace_of(batch, device))
        if config.exact_sampling:
            batch = replace(batch, sampled=old.cpu().numpy(), drawn=batch.sampled)
        if critic is None:
            return replace(batch, notes=Notes(old))
        values = critic(torch.from_numpy(batch.tokens).to(device))[:, :-1]
        penalty = None
        if reference is not None and objective.kl_in == "reward":
            _, ref, _ = policy_logprobs(reference, batch, config, device)
            penalty = objective.kl_beta * kl(old, ref, objective.kl_estimator)
    mask = torch.from_numpy(batch.mask).to(device)
    rewards = token_rewards(torch.from_numpy(batch.advantages).to(device), mask, penalty)
    gains, returns = gae(rewards, values, mask, config.critic.gamma, config.critic.gae_lambda)
    return replace(batch, notes=Notes(old, values, gains, returns))


def grpo_losses(
    model: Transformer,
    reference: Transformer | None,
    config: GRPOConfig,
    total: int,
    tokens: float,
    device: torch.device,
    widest: list[Tensor],
    batch: GroupBatch,
) -> Losses:
    """The policy loss of one micro-batch; its parts are sums over tokens, for `metric_means`.

    To `widest` goes what is no sum: the largest difference between the sampler's log-probabilities and the trainer's.
    """
    objective, notes = config.objective, batch.notes
    trace = trace_of(batch, device)
    hidden, logprobs, out = policy_logprobs(model, batch, config, device, trace)
    mask = torch.from_numpy(batch.mask).to(device)
    trained = loss_mask(mask, torch.from_numpy(batch.truncated).to(device), objective)
    ref = None
    if reference is not None:
        with torch.no_grad():
            _, ref, _ = policy_logprobs(reference, batch, config, device)
    gains = torch.from_numpy(batch.advantages).to(device)
    if notes is not None and notes.gains is not None:
        gains = notes.gains
    sampled = torch.from_numpy(batch.sampled).to(device)
    before = logprobs.detach() if notes is None else notes.old
    wide = gains if gains.ndim == 2 else gains.unsqueeze(1).expand_as(logprobs)
    correcting = replace(objective, correction="none") if config.exact_sampling else objective  # all weights were 1
    weight, counts = policy_weight(logprobs, before, sampled, wide, trained, correcting)
    old = sampled if objective.old_policy == "sampler" else None if notes is None else notes.old
    at = mask.flatten().nonzero().squeeze(1)
    entropy = _placed(out.entropy, at, batch) if objective.entropy_weight else None
    loss, metrics = policy_loss(logprobs, old, gains, trained, objective, total, ref, weight, entropy)
    if config.mtp_weight and len(model.mtp):
        loss = loss + config.mtp_weight * draft_loss(model, hidden, batch, device) / tokens
    gaps = sampler_gap(before, batch, trained, device)
    widest.append(gaps.pop("gap_max"))
    metrics |= gaps
    metrics["entropy"] = out.entropy.detach()[trained[mask]].sum()
    return Losses(loss, {**metrics, **counts, "loss": loss.detach()}, trace.loads)


def trace_of(batch: GroupBatch, device: torch.device) -> RoutingTrace:
    """Which tokens count, and the experts to take again where the sampler's are known."""
    replay = None if batch.experts is None else torch.from_numpy(batch.experts).to(device, torch.int64)
    return RoutingTrace(valid=torch.from_numpy(batch.valid).to(device), replay=replay)


def sampler_gap(before: Tensor, batch: GroupBatch, trained: Tensor, device: torch.device) -> dict[str, Tensor]:
    """How far the trainer is from what sampled: sums over tokens of |difference| and k3, and the largest difference.

    Where the training forward stands in for the sampler, what the engine itself said is held against it, too.
    """

    def differences(said: NDArray[np.float32]) -> Tensor:
        return (before - torch.from_numpy(said).to(device)).where(trained, 0.0)

    gap = differences(batch.sampled)
    found = {"gap": gap.abs().sum(), "gap_k3": (bounded_exp(gap) - gap - 1).sum(), "gap_max": gap.abs().max()}
    if batch.drawn is not None:
        found["engine_gap"] = differences(batch.drawn).abs().sum()
    return found


def draft_loss(model: Transformer, hidden: Tensor, batch: GroupBatch, device: torch.device) -> Tensor:
    """Sum of the first MTP module's losses on the answers; nothing of it reaches trunk, embedding or head."""
    tokens = torch.from_numpy(batch.tokens).to(device)
    turn = model.turn(tokens[:, 1:-1], None, None)
    state = model.mtp[0](hidden[:, :-2].detach(), model.embedding(tokens[:, 1:-1]).detach(), turn)
    at = torch.from_numpy(batch.mask[:, 1:]).to(device).flatten().nonzero().squeeze(1)
    state = state.flatten(0, 1).index_select(0, at)
    return -token_logprobs(state, model.head_weight.detach(), tokens[:, 2:].flatten()[at]).logprob.sum()


def critic_losses(critic: Critic, config: GRPOConfig, tokens: float, device: torch.device, batch: GroupBatch) -> Losses:
    """The critic's loss on one micro-batch that has its notes."""
    notes = batch.notes
    assert notes is not None and notes.values is not None and notes.returns is not None
    trained = loss_mask(
        torch.from_numpy(batch.mask).to(device), torch.from_numpy(batch.truncated).to(device), config.objective
    )
    values = critic(torch.from_numpy(batch.tokens).to(device))[:, :-1]
    loss, parts = value_loss(values, notes.values, notes.returns, trained, config.critic.value_clip, tokens)
    return Losses(loss, parts, [])


def _states(model: Transformer, tokens: Tensor, batch: GroupBatch, trace: RoutingTrace | None) -> Tensor:
    """(N, T, D) behind the final norm."""
    if not batch.shares:
        return model(tokens, trace=trace)
    groups, lengths = (torch.from_numpy(a).to(tokens.device) for a in (batch.groups, batch.prompts))
    return forward_shared(model, tokens, Shared.of(groups, lengths, tokens.shape[1]), trace or RoutingTrace())


def _placed(values: Tensor, at: Tensor, batch: GroupBatch) -> Tensor:
    """Values of the chosen places in a table (N, T - 1) of zeros."""
    table = torch.zeros(batch.mask.size, device=values.device)
    return table.index_put((at,), values).view(batch.mask.shape)
