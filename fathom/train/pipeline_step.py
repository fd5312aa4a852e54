"""One optimizer step of a model spread over a pipeline: equal, to rounding, to `train_step`'s of one process."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from fathom.model.parallelize import local
from fathom.model.pipeline import loads_of
from fathom.parallel.pipeline import exchange_ends
from fathom.parallel.world import World
from fathom.plan.measured import Note
from fathom.train.guard import Guard
from fathom.train.pipeline import Pipeline, Task, collect
from fathom.train.step import Rates, Steppable, StepReport, spread_norm, sum_over_world, update


def pipeline_step(
    state: Steppable,
    pipeline: Pipeline,
    task: Task,
    rates: Rates,
    world: World,
    guard: Guard | None = None,
    notes: list[Note] | None = None,
) -> StepReport:
    """Pass all micro-batches through the pipeline, sum, clip, update, then move the selection bias.

    Every process of a pipeline brings the same rows. With `notes` the pipeline begins everywhere at once, and what
    this process computes when is added there.
    """
    before = world.sent()
    if notes is not None:
        world.barrier()
    parts, loads = pass_and_sum(pipeline, task, world, notes)
    held = [loads[row] for row in loads_of(pipeline.config, pipeline.stages) if row < len(loads)]
    report = update(state, parts, held, rates, world, guard, spread_norm(pipeline.counted, world))
    sent = {kind: count - before.get(kind, 0) for kind, count in world.sent().items()}
    return replace(report, loads=loads, sent=sent)


def pass_and_sum(
    pipeline: Pipeline, task: Task, world: World, notes: list[Note] | None = None
) -> tuple[dict[str, Tensor], Tensor]:
    """Gradients of the step, summed over the processes, in the weights; returned: loss parts and the model's loads."""
    pipeline.run(task, notes)
    if pipeline.copied:
        exchange_ends([_gradient_of(weight) for weight in pipeline.copied], pipeline.axis)
    sum_over_world(pipeline.model, {}, [], world)
    return collect(task, pipeline.config, world.device, (world.tokens, pipeline.axis))


def _gradient_of(weight: nn.Parameter) -> Tensor:
    """This process's part of the gradient, of zeros where no pass met the weight."""
    if weight.grad is None:
        weight.grad = torch.zeros_like(weight)
    return local(weight.grad)
