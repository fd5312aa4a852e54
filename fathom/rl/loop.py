"""The GRPO loop: sample, grade, compare within groups, update."""

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import cast

import numpy as np
import torch

from fathom.config import GRPOConfig
from fathom.model import Transformer
from fathom.model.parallelize import is_spread, parallelize
from fathom.rl.batch import GroupBatch, collate, in_micro_batches, nothing
from fathom.rl.budget import Purse
from fathom.rl.critic import CriticState
from fathom.rl.gae import whiten
from fathom.rl.grpo import denominator, loss_mask, metric_means
from fathom.rl.held_out import HeldOut
from fathom.rl.losses import critic_losses, grpo_losses, take_notes
from fathom.rl.outcome import rollout_metrics
from fathom.rl.reference import Reference
from fathom.rl.rollout import Rollout, open_engine, roll_out
from fathom.rl.sync import Sampler, require_no_critic, require_whole_layers
from fathom.tasks import Countdown, Task
from fathom.text.chat import parse_reply
from fathom.text.tokenizer import Tokenizer
from fathom.train import schedule
from fathom.train.loop import Place, finish_step, kept_alive, resume
from fathom.train.metrics import balance_metrics
from fathom.train.step import Rates, StepReport, TrainState, train_step

EXAMPLES = 3  # answers kept with every checkpoint


@kept_alive
def train_grpo(
    place: Place,
    config: GRPOConfig,
    model: Transformer,
    task: Task,
    tokenizer: Tokenizer,
    seed: int,
    dollars_per_hour: float = 0.0,
) -> TrainState:
    """Reinforcement learning to `config.steps`, going on from the stage's newest checkpoint.

    With a budget it ends earlier: before a step that could cost more, or on a plateau (see `is_plateau`).

    The engine samples from the very tensors that are trained, or where these are spread from a whole copy of them. All
    randomness follows from (seed, step, process): a resumed run repeats an unbroken one.
    """
    if config.prompts < place.world.size:
        raise ValueError(
            f"grpo.prompts={config.prompts} leaves some of {place.world.size} workers without a question; "
            f"ask for at least {place.world.size}, or lower --workers"
        )
    require_fitting(config, model)
    require_whole_layers(place.world)
    if config.objective.advantage == "gae":
        require_no_critic(place.world)
    model = parallelize(model, place.world, place.dtype)
    state = resume(place, TrainState.start(model, config.optimizer))
    reference = Reference(state, config, place.world, place.dtype)
    critic = CriticState.start(state, config.critic, place.world) if config.objective.advantage == "gae" else None
    questions = share(config.prompts, place.world.rank, place.world.size)
    held_out = HeldOut.draw(task, tokenizer, config, seed, place.world)
    sampler = Sampler(state.model, place.world, place.dtype)
    engine = open_engine(sampler.model, config, questions)
    if place.world.is_main:
        place.run.forget_samples(place.stage, state.step)
    purse = Purse(place, config, dollars_per_hour) if config.budget_dollars else None
    while state.step < config.steps and not (purse and purse.is_empty()):
        started = time.perf_counter()
        reference.refresh(state)
        sampler.refresh()
        # before the step's own sampling: it stands in one line with the training accuracy of the same weights
        measured = held_out.measure(engine) if held_out and held_out.is_due(state.step) else {}
        sampling_at = time.perf_counter()
        draw = f"{seed}/{state.step}/{place.world.rank}"
        rollout = roll_out(engine, task, tokenizer, config, questions, state.step, draw)
        sampled_at = time.perf_counter()
        metrics = update(place, config, state, reference, rollout, critic)
        outcome = rollout_metrics(place, rollout, config.group, isinstance(task, Countdown))
        metrics |= outcome | measured
        metrics["rollout_tokens_per_s"] = outcome["rollout_tokens"] / (sampled_at - sampling_at)
        metrics["seconds"] = time.perf_counter() - started
        if purse:
            metrics |= purse.pay(metrics)
        if place.world.is_main and state.step % config.save_every == 0:
            keep_examples(place, state.step, rollout)
        last = state.step if metrics.get("stopped") else config.steps
        finish_step(place, state, metrics, config.save_every, config.keep_checkpoints, last)
        if metrics.get("stopped"):
            break
    return state


def keep_examples(place: Place, step: int, rollout: Rollout) -> None:
    """Keep the first answers to a step's first questions as examples, without looking at whether they are right."""
    first = {episode.group: episode for episode in reversed(rollout.sampled)}
    for group in sorted(first)[:EXAMPLES]:
        episode = first[group]
        reply = parse_reply(episode.reply)
        place.run.append_sample(
            place.stage,
            question=episode.problem.question,
            thinking=reply.thinking,
            answer=reply.answer,
            correct=episode.reward.accuracy == 1,
            reply=episode.reply,
            step=step,
            reward=episode.reward.total,
        )


def require_fitting(config: GRPOConfig, model: Transformer) -> None:
    """Refuse what the model has no parts for."""
    if config.drafts == "auto" and not len(model.mtp):
        raise ValueError(
            "grpo.drafts=auto needs an MTP module to draft, but model.num_nextn_predict_layers=0; choose off"
        )
    if config.replay_routing and not any(map(model.config.is_moe_layer, range(model.config.num_hidden_layers))):
        raise ValueError(
            "grpo.replay_routing=True repeats choices of experts, but the model has none; leave it at False"
        )


def share(total: int, rank: int, size: int) -> int:
    """How many of `total` things process `rank` of `size` takes."""
    return (total + size - 1 - rank) // size


def update(
    place: Place,
    config: GRPOConfig,
    state: TrainState,
    reference: Reference,
    rollout: Rollout,
    critic: CriticState | None = None,
) -> dict[str, object]:
    """One optimizer step per mini-batch of the rollout; `state.step` counts rollouts."""
    batch = collate(rollout.kept, config)
    order = np.random.default_rng(state.step).permutation(len(batch.tokens))
    updates = [in_micro_batches(batch, rows, config.micro_batch_rows) for rows in np.array_split(order, config.updates)]
    if is_spread(state.model):
        updates = in_step(updates, place)
    # all of them are judged against the policy before the first
    if critic or config.updates > 1 or config.exact_sampling:
        judge = critic and critic.model
        updates = [
            [take_notes(state.model, reference.model, judge, micro, config, place) for micro in micros]
            for micros in updates
        ]
    if critic:
        updates = whitened(updates, config, place)
    rates = rates_of(config, state)
    reports: list[StepReport] = []
    values: list[StepReport] = []
    widest: list[torch.Tensor] = []
    for micros in updates:
        reports.append(update_once(place, config, state, reference, micros, rates, widest))
        if critic:
            values.append(update_critic(place, config, critic, micros, rates))
    state.step += 1
    if critic:
        critic.keep(state)
    sums = {name: sum(report.parts[name] for report in reports) for name in reports[0].parts}
    loss = sums.pop("loss") / len(reports)
    norm = sum(report.grad_norm for report in reports) / len(reports)
    trained = float(batch.valid.sum())
    return {
        **metric_means({name: torch.tensor(value) for name, value in sums.items()}),
        "loss": loss,
        "grad_norm": norm,
        "lr": rates.lr,
        "gap_max": max(float(str(gap)) for gap in place.world.gather(max(float(gap) for gap in widest))),
        "trained_tokens": place.world.sum_numbers(trained)[0],
        **critic_metrics(values, sums["tokens"]),
        **balance_metrics(reports[-1].loads),
    }


def in_step(updates: list[list[GroupBatch]], place: Place) -> list[list[GroupBatch]]:
    """As many micro-batches on every process, for all talk in each of them; the last may hold nothing."""
    counts = cast(list[list[int]], place.world.gather([len(micros) for micros in updates]))
    most = [max(each) for each in zip(*counts, strict=True)]
    return [micros + [nothing()] * (count - len(micros)) for micros, count in zip(updates, most, strict=True)]


def rates_of(config: GRPOConfig, state: TrainState) -> Rates:
    """The rates of one rollout's updates from the schedule."""
    c, o = config.schedule, config.optimizer
    return Rates(
        lr=schedule.learning_rate(c, o.lr, state.step, config.steps),
        clip_norm=o.clip_norm,
        bias_speed=schedule.bias_speed(c, state.model.config.moe.bias_update_speed, state.step, config.steps),
        ema_decay=o.ema_decay,
    )


def update_once(
    place: Place,
    config: GRPOConfig,
    state: TrainState,
    reference: Reference,
    micro_batches: Sequence[GroupBatch],
    rates: Rates,
    widest: list[torch.Tensor],
) -> StepReport:
    """One optimizer step; its denominators count over all micro-batches and processes."""
    world, objective = place.world, config.objective
    masks = [trained_mask(micro, config) for micro in micro_batches]
    total, tokens = world.sum_numbers(
        sum(int(denominator(mask, objective, config.sampling.max_tokens)) for mask in masks),
        sum(int(mask.sum()) for mask in masks),
    )
    counts = int(total), max(tokens, 1.0)
    losses = partial(grpo_losses, state.model, reference.model, config, *counts, world.device, widest)
    return train_step(state, micro_batches, losses, rates, world, place.dtype)


def update_critic(
    place: Place, config: GRPOConfig, critic: CriticState, micro_batches: Sequence[GroupBatch], rates: Rates
) -> StepReport:
    """The critic's step on the same answers, at its own rate on the policy's schedule."""
    world, optimizer = place.world, config.critic.optimizer
    (tokens,) = world.sum_numbers(sum(int(trained_mask(micro, config).sum()) for micro in micro_batches))
    losses = partial(critic_losses, critic.model, config, max(tokens, 1.0), world.device)
    own = Rates(lr=optimizer.lr * rates.lr / config.optimizer.lr, clip_norm=optimizer.clip_norm, bias_speed=0.0)
    return train_step(critic, micro_batches, losses, own, world, place.dtype)


def trained_mask(batch: GroupBatch, config: GRPOConfig) -> torch.Tensor:
    """The tokens of a micro-batch that are trained, (N, T - 1)."""
    return loss_mask(torch.from_numpy(batch.mask), torch.from_numpy(batch.truncated), config.objective)


def whitened(updates: list[list[GroupBatch]], config: GRPOConfig, place: Place) -> list[list[GroupBatch]]:
    """The same micro-batches, their advantages whitened over the whole rollout of all processes."""
    every = [micro for micros in updates for micro in micros]
    raw = [micro.notes.gains for micro in every if micro.notes is not None and micro.notes.gains is not None]
    gains = iter(whiten(raw, [trained_mask(micro, config).to(place.world.device) for micro in every], place.world))

    def renewed(micro: GroupBatch) -> GroupBatch:
        assert micro.notes is not None
        return replace(micro, notes=replace(micro.notes, gains=next(gains)))

    return [[renewed(micro) for micro in micros] for micros in updates]


def critic_metrics(reports: Sequence[StepReport], tokens: float) -> dict[str, object]:
    """The critic's mean loss, and the share of its tokens whose value was held back; nothing without a critic."""
    if not reports:
        return {}
    loss, cut = (sum(report.parts[name] for report in reports) for name in ("value_loss", "value_clip"))
    return {"value_loss": loss / len(reports), "value_clip": cut / max(tokens, 1.0)}
