"""The GRPO loop: sample, grade, compare within groups, update."""

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fathom.config import GRPOConfig
from fathom.infer.engine import Engine
from fathom.kernels.cross_entropy import TokenLogprobs, token_logprobs
from fathom.model import RoutingTrace, Transformer
from fathom.rl.grpo import (
    advantages,
    denominator,
    loss_mask,
    metric_means,
    policy_loss,
)
from fathom.rl.objectives import check_objective
from fathom.rl.rollout import Episode, Rollout, roll_out
from fathom.tasks import Task
from fathom.text.tokenizer import Tokenizer
from fathom.train import schedule
from fathom.train.loop import Place, finish_step, resume
from fathom.train.loss import Losses
from fathom.train.metrics import balance_metrics
from fathom.train.step import Rates, StepReport, TrainState, train_step

MIN_WIDTH = 3  # tokens of a row: what the MTP module needs for one prediction


@dataclass(frozen=True)
class GroupBatch:
    """Padded episodes, all (N, T - 1): place t predicts token t + 1."""

    tokens: NDArray[np.int64]  # (N, T)
    mask: NDArray[np.bool_]  # the next token is the policy's own
    sampled: NDArray[np.float32]  # its log-probability when it was sampled
    valid: NDArray[np.float32]  # (N, T), 0 on padding
    advantages: NDArray[np.float32]  # (N,)
    truncated: NDArray[np.bool_]  # (N,)
    old: Tensor | None = None  # log-probabilities frozen before the first of several updates

    def rows(self, index: NDArray[np.int64]) -> "GroupBatch":
        """The rows `index`, at least one, cut to their own longest."""
        valid = self.valid[index]
        width = max(MIN_WIDTH, int(valid.sum(1).max()))
        return GroupBatch(
            tokens=self.tokens[index, :width],
            mask=self.mask[index, : width - 1],
            sampled=self.sampled[index, : width - 1],
            valid=valid[:, :width],
            advantages=self.advantages[index],
            truncated=self.truncated[index],
        )


def train_grpo(
    place: Place, config: GRPOConfig, model: Transformer, task: Task, tokenizer: Tokenizer, seed: int
) -> TrainState:
    """Reinforcement learning to `config.steps`, going on from the stage's newest checkpoint.

    The engine samples from the very tensors that are trained, so nothing has to be copied between them. All
    randomness follows from (seed, step, process): a resumed run repeats an unbroken one.
    """
    check_objective(config)
    if config.prompts < place.world.size:
        raise ValueError(
            f"grpo.prompts={config.prompts} leaves some of {place.world.size} workers without a question; "
            f"ask for at least {place.world.size}, or lower --workers"
        )
    state = resume(place, TrainState.start(model, config.optimizer))
    reference = Reference(state, config)
    questions = share(config.prompts, place.world.rank, place.world.size)
    engine = Engine(model, rows=questions * config.group)
    while state.step < config.steps:
        started = time.perf_counter()
        reference.refresh(state)
        draw = f"{seed}/{state.step}/{place.world.rank}"
        rollout = roll_out(engine, task, tokenizer, config, questions, state.step, draw)
        sampled_at = time.perf_counter()
        metrics = update(place, config, state, reference, rollout)
        outcome = rollout_metrics(place, rollout)
        metrics |= outcome
        metrics["rollout_tokens_per_s"] = outcome["rollout_tokens"] / (sampled_at - started)
        metrics["seconds"] = time.perf_counter() - started
        finish_step(place, state, metrics, config.save_every, config.keep_checkpoints, config.steps)
    return state


def share(total: int, rank: int, size: int) -> int:
    """How many of `total` things process `rank` of `size` takes."""
    return (total + size - 1 - rank) // size


class Reference:
    """The policy that KL pulls towards; without a KL term there is none and it costs nothing."""

    def __init__(self, state: TrainState, config: GRPOConfig) -> None:
        self.every = config.objective.reference_reset_steps
        self.model = None
        if config.objective.kl_beta:
            self.model = copy.deepcopy(state.model).requires_grad_(False)
            if "reference" not in state.copies:
                state.keep_copy("reference")
            self._take(state.copies["reference"])

    def refresh(self, state: TrainState) -> None:
        """Become the current policy every so many steps (R1-Zero: 400)."""
        if self.model is not None and self.every and state.step and state.step % self.every == 0:
            state.keep_copy("reference")
            self._take(state.copies["reference"])

    def _take(self, weights: Sequence[Tensor]) -> None:
        assert self.model is not None
        for own, weight in zip(self.model.state_dict().values(), weights, strict=True):
            own.copy_(weight)


def update(
    place: Place, config: GRPOConfig, state: TrainState, reference: Reference, rollout: Rollout
) -> dict[str, object]:
    """One optimizer step per mini-batch of the rollout; `state.step` counts rollouts."""
    batch = collate(rollout.kept, config)
    order = np.random.default_rng(state.step).permutation(len(batch.tokens))
    updates = [by_length(batch, rows, config.micro_batch_rows) for rows in np.array_split(order, config.updates)]
    if config.updates > 1:  # all of them are judged against the policy before the first
        updates = [[freeze(state.model, micro, config, place) for micro in micros] for micros in updates]
    rates = Rates(
        lr=schedule.learning_rate(config.schedule, config.optimizer.lr, state.step, config.steps),
        clip_norm=config.optimizer.clip_norm,
        bias_speed=schedule.bias_speed(
            config.schedule, state.model.config.moe.bias_update_speed, state.step, config.steps
        ),
        ema_decay=config.optimizer.ema_decay,
    )
    reports = [update_once(place, config, state, reference, micros, rates) for micros in updates]
    state.step += 1
    sums = {name: sum(report.parts[name] for report in reports) for name in reports[0].parts}
    loss = sums.pop("loss") / len(reports)
    norm = sum(report.grad_norm for report in reports) / len(reports)
    trained = float(batch.valid.sum())
    return {
        **metric_means({name: torch.tensor(value) for name, value in sums.items()}),
        "loss": loss,
        "grad_norm": norm,
        "lr": rates.lr,
        "trained_tokens": place.world.sum_numbers(trained)[0],
        **balance_metrics(reports[-1].loads),
    }


def update_once(
    place: Place,
    config: GRPOConfig,
    state: TrainState,
    reference: Reference,
    micro_batches: Sequence[GroupBatch],
    rates: Rates,
) -> StepReport:
    """One optimizer step; its denominators count over all micro-batches and processes."""
    world, objective = place.world, config.objective
    masks = [loss_mask(torch.from_numpy(m.mask), torch.from_numpy(m.truncated), objective) for m in micro_batches]
    total, tokens = world.sum_numbers(
        sum(int(denominator(mask, objective, config.sampling.max_tokens)) for mask in masks),
        sum(int(mask.sum()) for mask in masks),
    )
    losses = partial(grpo_losses, state.model, reference.model, config, int(total), max(tokens, 1.0), world.device)
    return train_step(state, micro_batches, losses, rates, world, place.dtype)


def collate(episodes: Sequence[Episode], config: GRPOConfig) -> GroupBatch:
    """Pad episodes to one width; with none, the batch that trains nothing."""
    if not episodes:
        return nothing()
    width = max(len(e.prompt) + len(e.completion) for e in episodes)
    tokens = np.zeros((len(episodes), width), np.int64)
    valid = np.zeros((len(episodes), width), np.float32)
    mask = np.zeros((len(episodes), width - 1), np.bool_)
    sampled = np.zeros((len(episodes), width - 1), np.float32)
    for row, e in enumerate(episodes):
        start, end = len(e.prompt), len(e.prompt) + len(e.completion)
        tokens[row, :end] = e.prompt + e.completion
        valid[row, :end] = 1
        mask[row, start - 1 : end - 1] = e.total == e.total  # an answer that nobody could grade trains nothing
        sampled[row, start - 1 : end - 1] = e.logprobs
    rewards = torch.tensor([e.total for e in episodes])
    gains = advantages(rewards, torch.tensor([e.group for e in episodes]), config.objective)
    return GroupBatch(tokens, mask, sampled, valid, gains.numpy(), np.array([e.truncated for e in episodes]))


def nothing() -> GroupBatch:
    """One row that neither trains nor counts, for a process or an update without episodes to keep step with others."""
    mask = np.zeros((1, MIN_WIDTH - 1), np.bool_)
    return GroupBatch(
        tokens=np.zeros((1, MIN_WIDTH), np.int64),
        mask=mask,
        sampled=mask.astype(np.float32),
        valid=np.zeros((1, MIN_WIDTH), np.float32),
        advantages=np.zeros(1, np.float32),
        truncated=np.zeros(1, np.bool_),
    )


def by_length(batch: GroupBatch, rows: NDArray[np.int64], size: int) -> list[GroupBatch]:
    """Micro-batches of rows of like length, so that little is padding; never none."""
    if not len(rows):
        return [nothing()]
    ordered = rows[np.argsort(batch.valid[rows].sum(1), kind="stable")]
    return [batch.rows(ordered[at : at + size]) for at in range(0, len(ordered), size)]


def policy_logprobs(
    model: Transformer, batch: GroupBatch, config: GRPOConfig, device: torch.device, trace: RoutingTrace | None = None
) -> tuple[Tensor, Tensor, TokenLogprobs]:
    """Hidden states (N, T, D), log-probabilities (N, T - 1) at the sampling temperature, and what came with them.

    Only places where the policy chose reach the head; elsewhere the log-probability is 0.
    """
    tokens = torch.from_numpy(batch.tokens).to(device)
    hidden = model(tokens, trace=trace)
    at = torch.from_numpy(batch.mask).to(device).flatten().nonzero().squeeze(1)
    out = token_logprobs(
        hidden[:, :-1].flatten(0, 1).index_select(0, at),
        model.head_weight,
        tokens[:, 1:].flatten()[at],
        config.sampling.temperature,
        entropy=True,
    )
    logprobs = torch.zeros(batch.mask.size, device=device).index_put((at,), out.logprob)
    return hidden, logprobs.view(batch.mask.shape), out


@torch.no_grad()
def freeze(model: Transformer, batch: GroupBatch, config: GRPOConfig, place: Place) -> GroupBatch:
    """Note the log-probabilities before the first of several updates, in the precision of the updates."""
    device = place.world.device
    with torch.autocast(device.type, place.dtype, enabled=place.dtype != torch.float32):
        _, old, _ = policy_logprobs(model, batch, config, device)
    return replace(batch, old=old)


def grpo_losses(
    model: Transformer,
    reference: Transformer | None,
    config: GRPOConfig,
    total: int,
    tokens: float,
    device: torch.device,
    batch: GroupBatch,
) -> Losses:
    """The policy loss of one micro-batch; its parts are sums over tokens, for `metric_means`."""
    trace = RoutingTrace(valid=torch.from_numpy(batch.valid).to(device))
    hidden, logprobs, out = policy_logprobs(model, batch, config, device, trace)
    mask = torch.from_numpy(batch.mask).to(device)
    trained = loss_mask(mask, torch.from_numpy(batch.truncated).to(device), config.objective)
    ref = None
    if reference is not None:
        with torch.no_grad():
            _, ref, _ = policy_logprobs(reference, batch, config, device)
    gains = torch.from_numpy(batch.advantages).to(device)
    loss, metrics = policy_loss(logprobs, batch.old, gains, trained, config.objective, total, ref_logp=ref)
    if config.mtp_weight and len(model.mtp):
        loss = loss + config.mtp_weight * draft_loss(model, hidden, batch, device) / tokens
    sampled = torch.from_numpy(batch.sampled).to(device)
    before = logprobs.detach() if batch.old is None else batch.old
    metrics["gap"] = ((before - sampled).abs() * trained).sum()
    metrics["entropy"] = out.entropy[trained[mask]].sum()
    return Losses(loss, {**metrics, "loss": loss.detach()}, trace.loads)


def draft_loss(model: Transformer, hidden: Tensor, batch: GroupBatch, device: torch.device) -> Tensor:
    """Sum of the first MTP module's losses on the answers; nothing of it reaches trunk, embedding or head."""
    tokens = torch.from_numpy(batch.tokens).to(device)
    turn = model.turn(tokens[:, 1:-1], None, None)
    state = model.mtp[0](hidden[:, :-2].detach(), model.embedding(tokens[:, 1:-1]).detach(), turn)
    at = torch.from_numpy(batch.mask[:, 1:]).to(device).flatten().nonzero().squeeze(1)
    state = state.flatten(0, 1).index_select(0, at)
    return -token_logprobs(state, model.head_weight.detach(), tokens[:, 2:].flatten()[at]).logprob.sum()


def rollout_metrics(place: Place, rollout: Rollout) -> dict[str, float]:
    """Rewards and lengths of all that was sampled, dropped groups included, over all processes."""
    episodes = rollout.sampled
    graded = [e for e in episodes if e.reward.accuracy is not None]
    right = [e for e in graded if e.reward.accuracy == 1]
    wrong = [e for e in graded if e.reward.accuracy != 1]
    own = {
        "answers": len(episodes),
        "graded": len(graded),
        "right": len(right),
        "reward": sum(e.total for e in graded),
        "format": sum(e.reward.format for e in episodes),
        "language": sum(e.reward.language for e in episodes),
        "soundness": sum(e.reward.soundness for e in episodes),
        "tokens": rollout.tokens,
        "right_tokens": sum(len(e.completion) for e in right),
        "wrong_tokens": sum(len(e.completion) for e in wrong),
        "truncated": sum(e.truncated for e in episodes),
        "dropped": rollout.groups_dropped,
        "kept": len({e.group for e in rollout.kept}),
    }
    total = dict(zip(own, place.world.sum_numbers(*own.values()), strict=True))
    answers, n_graded, n_right = total["answers"], total["graded"], total["right"]
    metrics = {
        "reward": total["reward"] / max(1, n_graded),
        "accuracy": n_right / max(1, n_graded),
        "format": total["format"] / answers,
        "language": total["language"] / answers,
        "soundness": total["soundness"] / answers,
        "length": total["tokens"] / answers,
        "truncated": total["truncated"] / answers,
        "ungraded": answers - n_graded,
        "groups_kept": total["kept"],
        "groups_dropped": total["dropped"],
        "rollout_tokens": total["tokens"],
    }
    if n_right:
        metrics["length_correct"] = total["right_tokens"] / n_right
    if n_graded > n_right:
        metrics["length_wrong"] = total["wrong_tokens"] / (n_graded - n_right)
    return metrics
