"""One optimizer step of a model spread over a pipeline: equal, to rounding, to `train_step`'s of one process."""

import math

import torch
from torch import nn

from fathom.model import update_selection_bias
from fathom.model.pipeline import loads_of
from fathom.parallel.pipeline import exchange_ends
from fathom.parallel.world import World
from fathom.plan.measured import Note
from fathom.train.pipeline import Pipeline, Task, collect
from fathom.train.step import Rates, StepReport, TrainState


def pipeline_step(
    state: TrainState, pipeline: Pipeline, task: Task, rates: Rates, world: World, notes: list[Note] | None = None
) -> StepReport:
    """Pass all micro-batches through the pipeline, sum, clip, update, then move the selection bias.

    Every process of a pipeline brings the same rows. With `notes` the pipeline begins everywhere at once, and what
    this process computes when is added there.
    """
    parameters = list(pipeline.model.parameters())
    if notes is not None:
        world.barrier()
    pipeline.run(task, notes)
    if pipeline.copied:
        exchange_ends([gradient_of(weight) for weight in pipeline.copied], pipeline.axis)
    world.rows.sum([weight.grad for weight in parameters if weight.grad is not None])
    parts, loads = collect(task, pipeline.config, (world.rows, pipeline.axis))
    grad_norm = clip_together(pipeline, rates.clip_norm)
    if not math.isfinite(grad_norm):
        raise RuntimeError(
            f"the gradient is not finite at step {state.step + 1}: training has diverged; the weights are those of the "
            "step before, repeat the stage with a lower learning rate"
        )
    for group in state.optimizer.param_groups:
        group["lr"] = rates.lr
    state.optimizer.step()
    torch.autograd.graph.increment_version(parameters)
    state.optimizer.zero_grad(set_to_none=False)
    if rates.bias_speed and len(loads):
        held = [row for row in loads_of(pipeline.config, pipeline.stages) if row < len(loads)]
        update_selection_bias(pipeline.model, loads[held].to(world.device), rates.bias_speed)
    if "ema" in state.copies:
        now = list(pipeline.model.state_dict().values())
        torch._foreach_lerp_(state.copies["ema"], now, 1 - rates.ema_decay)  # pyright: ignore
    return StepReport({name: float(value) for name, value in parts.items()}, grad_norm, loads)


def clip_together(pipeline: Pipeline, clip_norm: float) -> float:
    """Scale the gradients of all stages down to `clip_norm` if their global norm exceeds it; the norm before that."""
    counted = [weight.grad for weight in pipeline.counted if weight.grad is not None]
    local = float(torch.nn.utils.get_total_norm(counted)) if counted else 0.0
    norm = math.sqrt(pipeline.axis.sum_numbers(local**2)[0])
    if clip_norm and norm > clip_norm:
        gradients = [weight.grad for weight in pipeline.model.parameters() if weight.grad is not None]
        torch._foreach_mul_(gradients, clip_norm / (norm + 1e-6))  # pyright: ignore
    return norm


def gradient_of(weight: nn.Parameter) -> torch.Tensor:
    """The gradient, of zeros where no pass met the weight."""
    if weight.grad is None:
        weight.grad = torch.zeros_like(weight)
    return weight.grad
