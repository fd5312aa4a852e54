"""The loop of next-token training: batches in, metrics and checkpoints out; pretraining and SFT alike."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch

from fathom.checkpoint.files import list_checkpoints
from fathom.checkpoint.sharded import Saver
from fathom.config import ResilienceConfig, TrainConfig
from fathom.kernels.fuse import fuse
from fathom.model import Transformer
from fathom.model.lora import take_back, trained_parameters
from fathom.model.parallelize import let_go, parallelize
from fathom.model.precision import fp8_layers, use_fp8
from fathom.parallel.balance import Forecast
from fathom.parallel.world import World
from fathom.plan.count import train_flops_per_token
from fathom.plan.measured import Note
from fathom.runs import Run
from fathom.text.packing import Batch
from fathom.train import schedule
from fathom.train.ahead import BatchOf, collected_between_steps, fetched_ahead
from fathom.train.guard import Guard
from fathom.train.keep import keep_parts, keep_whole, keeps_parts, restore
from fathom.train.loss import Denominators, Losses, language_losses
from fathom.train.metrics import balance_metrics, peak_flops
from fathom.train.microscope import Limits, examine, fall_back, summarise
from fathom.train.pipeline import Pipeline, Task, collect, task_of
from fathom.train.pipeline_step import pipeline_step
from fathom.train.preemption import Notice, Preempted
from fathom.train.step import Rates, StepReport, TrainState, train_step
from fathom.train.watch import StepWatch
from fathom.train.watchdog import Watchdog

log = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")
Notify = Callable[[int, dict[str, object]], None]  # finished steps, the step's metrics


@dataclass(frozen=True)
class Place:
    """Where a stage runs and writes: the same for every training stage."""

    run: Run
    stage: str
    world: World
    dtype: torch.dtype = torch.float32
    notify: Notify = lambda step, metrics: None
    resilience: ResilienceConfig = field(default_factory=ResilienceConfig)

    @cached_property
    def saver(self) -> Saver:
        """Writes the stage's checkpoints where they come in parts."""
        return Saver(self.world.everyone)

    @cached_property
    def guard(self) -> Guard:
        """Judges the stage's updates."""
        return Guard(self.resilience)

    @cached_property
    def notice(self) -> Notice:
        """Whether the machine wants its place back."""
        return Notice()

    @cached_property
    def watchdog(self) -> Watchdog:
        """Ends this process when no step ends."""
        return Watchdog(self.run.path / "watch", self.world.rank, self.world.size, self.resilience.hang_seconds)


def kept_alive(loop: Callable[Concatenate[Place, P], R]) -> Callable[Concatenate[Place, P], R]:
    """A training loop that heeds signals and is watched while it runs."""

    @wraps(loop)
    def watched(place: Place, /, *args: P.args, **kwargs: P.kwargs) -> R:
        with place.notice.heeded(), place.watchdog.watching():
            return loop(place, *args, **kwargs)

    return watched


@kept_alive
def train_language(
    place: Place,
    config: TrainConfig,
    model: Transformer,
    batch_of: BatchOf,
    validation: Sequence[Batch] = (),
    mask_documents: bool = False,
    seed: int = 0,
) -> TrainState:
    """Train to `config.steps`, going on from the newest checkpoint of the stage if there is one.

    `batch_of(step, rows)` gives this process's share of a global batch of `rows`; it depends on nothing else,
    so an interrupted run repeats exactly what an unbroken one does. `validation` batches are this process's too.
    A `model` without memory gets it here, for this process's parts: its weights are a checkpoint's, or follow from
    `seed`.
    """
    require_spread(config, place.world)
    pipeline = Pipeline(model, place.world) if place.world.mesh.pipeline.size > 1 else None
    begun = list_checkpoints(place.run.checkpoint_dir(place.stage))
    generator = None if begun else torch.Generator().manual_seed(seed)
    model = parallelize(model, place.world, place.dtype, generator)
    state = resume(place, TrainState.start(model, config.optimizer))
    in_fp8 = config.precision == "fp8" and use_fp8(model, config.after_attention)
    fall_back(model, state.fallbacks)
    flops_per_token = {mtp: train_flops_per_token(model.config, config.seq_len, mtp) for mtp in (False, True)}
    readers = place.world.rows.size
    first_row = schedule.rows_before(config.schedule, config.batch_rows, state.step, config.steps, readers)
    watch = StepWatch(place.world, place.run.path / "traces" / place.stage)
    forecast = Forecast.of(place.world.layout.balance_devices, model.config.moe.n_routed_experts)
    fuse(config.compile)

    def rows_at(step: int) -> int:
        return schedule.batch_rows(config.schedule, config.batch_rows, step, config.steps, readers)

    with fetched_ahead(batch_of, place.world.device) as batches, collected_between_steps(place.world.device) as tidy:
        measured = state.step + 1  # the first step waits for connections and kernels
        while state.step < config.steps:
            started = time.perf_counter()
            step = state.step
            watch.begin(step)
            rows = rows_at(step)
            micro_batches = split_rows(batches(step, rows), config.micro_batch_rows)
            if step + 1 < config.steps:
                batches.begin(step + 1, rows_at(step + 1))
            watch.fetched()
            denominators = Denominators.of(micro_batches, model.config.num_nextn_predict_layers, place.world)
            weight = schedule.mtp_weight(config.schedule, step, config.steps)
            rates = rates_of(config, model, step)

            def losses_of(batch: Batch, denominators: Denominators = denominators, weight: float = weight) -> Losses:
                return language_losses(model, batch, denominators, weight, place.world.device, mask_documents)

            looked = examine_fp8(state, config, place, losses_of, micro_batches[0]) if in_fp8 else {}
            if pipeline is None:
                report = train_step(state, micro_batches, losses_of, rates, place.world, place.dtype, place.guard)
            else:
                given = denominators, weight, place.world, place.dtype, mask_documents
                task = task_of(micro_batches, model.config, *given)
                report = chart_step(place, state, pipeline, task, rates, step == measured)
            state.step += 1
            metrics: dict[str, object] = {
                **language_metrics(report),
                "lr": rates.lr,
                "rows": int(denominators.rows),
                **looked,
                **watch.end(step),
                **forecast.step(report.loads, ends=(step + 1) % config.save_every == 0),
                **left_out(place, report, (first_row, first_row + rows)),
            }
            tokens = denominators.rows * micro_batches[0].tokens.shape[1]
            metrics |= speed_metrics(tokens, time.perf_counter() - started, flops_per_token[weight > 0], place.world)
            if config.validate_every and validation and state.step % config.validate_every == 0:
                metrics["validation_loss"] = validation_loss(model, validation, place, mask_documents, pipeline)
            first_row += rows
            data = {"rows": [0, first_row], "schedule": [state.step, config.steps], "lr": rates.lr}
            finish_step(place, state, metrics, config.save_every, config.keep_checkpoints, config.steps, data)
            tidy(state.step)
    return state


def chart_step(
    place: Place, state: TrainState, pipeline: Pipeline, task: Task, rates: Rates, measured: bool
) -> StepReport:
    """A step through the pipeline; where it is `measured`, what every process did when is kept in the run."""
    notes: list[Note] | None = [] if measured else None
    report = pipeline_step(state, pipeline, task, rates, place.world, place.guard, notes)
    if notes is not None:
        record = pipeline.chart(notes, len(task.inputs))
        if place.world.is_main:
            place.run.append_pipeline(place.stage, state.step + 1, record)
    return report


def left_out(place: Place, report: StepReport, rows: tuple[int, int]) -> dict[str, object]:
    """Of an update that was not made: why, and whose rows, counted over the stage, it would have learned from."""
    if not report.left_out:
        return {}
    if place.world.is_main:
        log.warning("update left out: %s; rows %d to %d of the stage", report.left_out, rows[0], rows[1] - 1)
    return {"left_out": report.left_out, "left_out_rows": list(rows)}


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
    sent = {"sent_bytes": report.sent} if report.sent else {}
    return {**report.parts, "grad_norm": report.grad_norm, **balance_metrics(report.loads), **sent}


def speed_metrics(tokens: float, seconds: float, flops_per_token: float, world: World) -> dict[str, object]:
    """Throughput over all processes, and the share of their peak that the model's arithmetic used."""
    rate = tokens / seconds
    mfu = rate * flops_per_token / (peak_flops(world.device) * world.size)
    return {"tokens": int(tokens), "seconds": seconds, "tokens_per_s": rate, "mfu": mfu}


@torch.no_grad()
def validation_loss(
    model: Transformer,
    batches: Sequence[Batch],
    place: Place,
    mask_documents: bool = False,
    pipeline: Pipeline | None = None,
) -> float:
    """Next-token loss per token over all processes' validation batches."""
    denominators = Denominators.of(batches, 0, place.world)
    device = place.world.device
    if pipeline is not None:
        task = task_of(batches, model.config, denominators, 0.0, place.world, mask_documents=mask_documents)
        pipeline.evaluate(task)
        parts, _ = collect(task, model.config, device, (place.world.tokens, pipeline.axis))
        return float(parts["loss_main"])
    losses = [language_losses(model, b, denominators, 0.0, device, mask_documents).parts["loss_main"] for b in batches]
    let_go(model)
    return place.world.tokens.sum_numbers(sum(float(loss) for loss in losses))[0]


def finish_step(
    place: Place,
    state: TrainState,
    metrics: dict[str, object],
    save_every: int,
    keep: int,
    last: int,
    data: dict[str, Any] | None = None,
) -> None:
    """Write the step's line, and a checkpoint where one is due; raises Preempted where the machine wants its place.

    `data` says, for the checkpoint, what of the data lies behind the state.
    """
    place.watchdog.beat(state.step)
    place.saver.check()
    signal = place.notice.agreed(place.world)
    if place.world.is_main:
        place.run.append_metrics(place.stage, state.step, **metrics, **({"preempted": signal} if signal else {}))
        place.notify(state.step, metrics)
    ends = state.step == last or bool(signal)
    if state.step % save_every == 0 or ends:
        save(place, state, keep, data or {})
    if ends:
        place.saver.wait()
    if signal:
        log.info("%s: saved at step %d of the stage %s; --resume goes on from there", signal, state.step, place.stage)
        raise Preempted(signal)


def save(place: Place, state: TrainState, keep: int, data: dict[str, Any]) -> None:
    """A checkpoint of the stage: whole by the first process, or in parts by all, in the background."""
    values = {"stage": place.stage, "fallbacks": state.fallbacks, "guard": place.guard.as_values(), "data": data}
    directory = place.run.checkpoint_dir(place.stage)
    if keeps_parts(state, place.world):
        keep_parts(place.saver, directory, state, place.world, values, keep)
    elif place.world.is_main:
        keep_whole(directory, state, values, keep)


def require_spread(config: TrainConfig, world: World) -> None:
    """Refuse what cannot be done with weights in parts."""
    if config.fp8_check_every and world.layout.pipeline > 1:
        raise ValueError(
            f"fp8_check_every={config.fp8_check_every} compares gradients of whole models, but parallel.pipeline="
            f"{world.layout.pipeline} leaves none whole; choose fp8_check_every=0, or check with parallel.pipeline=1"
        )
    if world.layout.zero == 3 and world.layout.pipeline > 1 and world.layout.shard > 1:
        raise ValueError(
            "parallel.zero=3 gathers weights anew for every pass, but a pipeline has many passes under way at once and "
            "keeps them gathered for the step; choose parallel.zero=1, as V3 does (V3 3.2)"
        )
    if config.fp8_check_every and world.layout.shard > 1:
        raise ValueError(
            f"fp8_check_every={config.fp8_check_every} compares gradients of whole weights, but parallel.shard="
            f"{world.layout.shard} leaves none whole; choose fp8_check_every=0, or check with parallel.shard=1"
        )


def resume(place: Place, state: TrainState) -> TrainState:
    """Go back to the stage's newest good checkpoint, and drop the metrics of steps behind it."""
    values = restore(place.run.checkpoint_dir(place.stage), state, place.world)
    if "lora" in state.copies:
        take_back(state.model, state.copies["lora"])
        state.copies["lora"] = [parameter.data for parameter in trained_parameters(state.model)]
    place.guard.restore(values.get("guard", {}))
    place.watchdog.beat(state.step)
    if place.world.is_main:
        place.run.truncate_metrics(place.stage, state.step)
    place.world.barrier()
    return state
