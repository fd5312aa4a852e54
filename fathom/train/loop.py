"""The loop of next-token training: batches in, metrics and checkpoints out; pretraining and SFT alike."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from fathom.checkpoint.state import list_checkpoints, load_state, load_weights, save_checkpoint
from fathom.config import TrainConfig
from fathom.model import Transformer
from fathom.model.lora import restore, trained_parameters
from fathom.model.precision import fp8_layers, use_fp8
from fathom.parallel.world import World
from fathom.plan.count import train_flops_per_token
from fathom.runs import Run
from fathom.text.packing import Batch
from fathom.train import schedule
from fathom.train.loss import Denominators, Losses, language_losses
from fathom.train.metrics import balance_metrics, peak_flops
from fathom.train.microscope import Limits, examine, fall_back, summarise
from fathom.train.optimizer import load_optimizer_tensors, optimizer_tensors
from fathom.train.step import Rates, StepReport, TrainState, train_step

Notify = Callable[[int, dict[str, object]], None]  # finished steps, the step's metrics


@dataclass(frozen=True)
class Place:
    """Where a stage runs and writes: the same for every training stage."""

    run: Run
    stage: str
    world: World
    dtype: torch.dtype = torch.float32
    notify: Notify = lambda step, metrics: None


def train_language(
    place: Place,
    config: TrainConfig,
    model: Transformer,
    batch_of: Callable[[int, int], Batch],
    validation: Sequence[Batch] = (),
    mask_documents: bool = False,
) -> TrainState:
    """Train to `config.steps`, going on from the newest checkpoint of the stage if there is one.

    `batch_of(step, rows)` gives this process's share of a global batch of `rows`; it depends on nothing else,
    so an interrupted run repeats exactly what an unbroken one does. `validation` batches are this process's too.
    """
    state = resume(place, TrainState.start(model, config.optimizer))
    in_fp8 = config.precision == "fp8" and use_fp8(model, config.after_attention)
    fall_back(model, state.fallbacks)
    flops_per_token = {mtp: train_flops_per_token(model.config, config.seq_len, mtp) for mtp in (False, True)}
    while state.step < config.steps:
        started = time.perf_counter()
        step = state.step
        rows = schedule.batch_rows(config.schedule, config.batch_rows, step, config.steps, place.world.size)
        micro_batches = split_rows(batch_of(step, rows), config.micro_batch_rows)
        denominators = Denominators.of(micro_batches, len(model.mtp), place.world)
        weight = schedule.mtp_weight(config.schedule, step, config.steps)
        rates = rates_of(config, model, step)

        def losses_of(batch: Batch, denominators: Denominators = denominators, weight: float = weight) -> Losses:
            return language_losses(model, batch, denominators, weight, place.world.device, mask_documents)

        looked = examine_fp8(state, config, place, losses_of, micro_batches[0]) if in_fp8 else {}
        report = train_step(state, micro_batches, losses_of, rates, place.world, place.dtype)
        state.step += 1
        metrics: dict[str, object] = {
            **language_metrics(report),
            "lr": rates.lr,
            "rows": int(denominators.rows),
            **looked,
        }
        tokens = denominators.rows * micro_batches[0].tokens.shape[1]
        metrics |= speed_metrics(tokens, time.perf_counter() - started, flops_per_token[weight > 0], place.world)
        if config.validate_every and validation and state.step % config.validate_every == 0:
            metrics["validation_loss"] = validation_loss(model, validation, place, mask_documents)
        finish_step(place, state, metrics, config.save_every, config.keep_checkpoints, config.steps)
    return state


def examine_fp8(
    state: TrainState, config: TrainConfig, place: Place, losses_of: Callable[[Batch], Losses], batch: Batch
) -> dict[str, object]:
    """Where a comparison with the step without FP8 is due: its metrics; layers that drift have fallen back."""
    if not config.fp8_check_every or state.step % config.fp8_check_every or not any(fp8_layers(state.model)):
        return {}

    def loss() -> torch.Tensor:
        with torch.autocast(place.world.device.type, place.dtype, enabled=place.dtype != torch.float32):
            return losses_of(batch).total

    findings = examine(state.model, loss, place.world, Limits(cosine=config.fp8_least_cosine))
    state.fallbacks |= {finding.layer: finding.fallback for finding in findings if finding.fallback}
    return summarise(findings)


def rates_of(config: TrainConfig, model: Transformer, step: int) -> Rates:
    """The rates of one step from the schedule."""
    c, o = config.schedule, config.optimizer
    return Rates(
        lr=schedule.learning_rate(c, o.lr, step, config.steps),
        clip_norm=o.clip_norm,
        bias_speed=schedule.bias_speed(c, model.config.moe.bias_update_speed, step, config.steps),
        ema_decay=o.ema_decay,
    )


def split_rows(batch: Batch, rows: int) -> list[Batch]:
    """Micro-batches of at most `rows` rows."""
    return [batch.rows(at, at + rows) for at in range(0, batch.tokens.shape[0], rows)]


def language_metrics(report: StepReport) -> dict[str, object]:
    """A step's losses and balance, as they go into metrics.jsonl."""
    return {**report.parts, "grad_norm": report.grad_norm, **balance_metrics(report.loads)}


def speed_metrics(tokens: float, seconds: float, flops_per_token: float, world: World) -> dict[str, object]:
    """Throughput over all processes, and the share of their peak that the model's arithmetic used."""
    rate = tokens / seconds
    mfu = rate * flops_per_token / (peak_flops(world.device) * world.size)
    return {"tokens": int(tokens), "seconds": seconds, "tokens_per_s": rate, "mfu": mfu}


@torch.no_grad()
def validation_loss(model: Transformer, batches: Sequence[Batch], place: Place, mask_documents: bool = False) -> float:
    """Next-token loss per token over all processes' validation batches."""
    denominators = Denominators.of(batches, 0, place.world)
    device = place.world.device
    losses = [language_losses(model, b, denominators, 0.0, device, mask_documents).parts["loss_main"] for b in batches]
    return place.world.sum_numbers(sum(float(loss) for loss in losses))[0]


def finish_step(
    place: Place, state: TrainState, metrics: dict[str, object], save_every: int, keep: int, last: int
) -> None:
    """Write the step's line, and a checkpoint where one is due; only the first process writes."""
    if place.world.is_main:
        place.run.append_metrics(place.stage, state.step, **metrics)
        place.notify(state.step, metrics)
        if state.step % save_every == 0 or state.step == last:
            tensors = {f"optimizer.{name}": t for name, t in optimizer_tensors(state.optimizer).items()}
            for name, copy in state.copies.items():
                tensors |= {f"{name}.{index}": tensor for index, tensor in enumerate(copy)}
            kept = {"stage": place.stage, "fallbacks": state.fallbacks}
            directory = place.run.checkpoint_dir(place.stage)
            save_checkpoint(directory, state.step, state.model, tensors, kept, keep)


def resume(place: Place, state: TrainState) -> TrainState:
    """Go back to the stage's newest checkpoint, and drop the metrics of steps behind it."""
    checkpoints = list_checkpoints(place.run.checkpoint_dir(place.stage))
    if checkpoints:
        load_weights(checkpoints[-1], state.model)
        tensors, values = load_state(checkpoints[-1])
        parts: dict[str, dict[str, torch.Tensor]] = {}
        for name, tensor in tensors.items():
            kind, _, rest = name.partition(".")
            parts.setdefault(kind, {})[rest] = tensor.to(place.world.device)
        load_optimizer_tensors(state.optimizer, parts.pop("optimizer"))
        state.copies = {kind: [copy[str(i)] for i in range(len(copy))] for kind, copy in parts.items()}
        if "lora" in state.copies:
            restore(state.model, state.copies["lora"])
            state.copies["lora"] = [parameter.data for parameter in trained_parameters(state.model)]
        state.step, state.fallbacks = values["step"], values.get("fallbacks", {})
    if place.world.is_main:
        place.run.truncate_metrics(place.stage, state.step)
    place.world.barrier()
    return state
