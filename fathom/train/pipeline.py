"""A model whose layers are spread over processes: its stages here, and how micro-batches pass through them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from fathom.config import ModelConfig
from fathom.kernels.owed import Owed
from fathom.model import RoutingTrace, Transformer
from fathom.model.parallelize import begin_pipeline, end_pipeline, let_go
from fathom.model.pipeline import (
    Stage,
    cut_stages,
    defer_weight_gradients,
    keep_stages,
    loads_of,
    pass_stage,
    pause_in_experts,
    shares_embedding,
    with_auxiliary,
)
from fathom.parallel.baton import Baton
from fathom.parallel.mesh import Axis
from fathom.parallel.pipeline import Piece, Schedule, build_schedule, run_forward, run_schedule
from fathom.parallel.world import World
from fathom.plan.measured import Note, to_record
from fathom.plan.timeline import stage_of, stages_of
from fathom.text.packing import Batch
from fathom.train.loss import Denominators, Inputs, Losses, losses_behind

PARTS = ("loss", "loss_main", "loss_mtp", "loss_balance", "mtp_acceptance")  # what a step may report


@dataclass
class Task:
    """One step's work: what all stages read, and what they note while the micro-batches pass."""

    inputs: Sequence[Inputs]
    denominators: Denominators
    mtp_weight: float
    dtype: torch.dtype = torch.float32
    parts: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    loads: dict[int, Tensor] = field(default_factory=dict[int, Tensor])  # (E,) by the row of the whole model's loads

    def note(self, losses: Losses, rows: Sequence[int]) -> None:
        """Add a micro-batch's parts and loads; a step without MTP has no loads of its modules, the last rows."""
        for name, value in losses.parts.items():
            self.parts[name] = self.parts.get(name, 0) + value
        for row, load in zip(rows, losses.loads, strict=False):
            self.loads[row] = self.loads.get(row, 0) + load


class StageWork(nn.Module):
    """A stage as a schedule calls it: with the number of the micro-batch, whose data all processes have."""

    task: Task

    def __init__(self, model: Transformer, stage: Stage, pause: Callable[[], None] | None) -> None:
        super().__init__()
        # not as a submodule: torch's schedules would gather and let go what FSDP shares by their own rules
        self.held, self.stage, self.pause = (model,), stage, pause
        self.rows = loads_of(model.config, [stage])

    def forward(self, *received: Tensor, micro_batch: Tensor) -> Tensor:
        """The states for the next stage, or the loss at the last one; the first receives the number alone."""
        (model,), task, inputs = self.held, self.task, self.task.inputs[int(micro_batch)]
        trace = RoutingTrace(valid=inputs.valid)
        x = inputs.tokens if self.stage.is_first else received[0]
        with torch.autocast(x.device.type, task.dtype, enabled=task.dtype != torch.float32):
            states = pass_stage(model, self.stage, x, inputs.positions, inputs.mask, trace, self.pause)
            if self.stage.is_last:
                losses = losses_behind(model, states, inputs, task.denominators, task.mtp_weight, trace)
                out = losses.total
            else:
                losses = balance_losses(model.config, inputs, task.denominators, trace)
                out = with_auxiliary(states, losses.total) if trace.balance else states
        task.note(losses, self.rows)
        return out


def balance_losses(config: ModelConfig, inputs: Inputs, denominators: Denominators, trace: RoutingTrace) -> Losses:
    """What an inner stage adds to the loss: the balance of its experts, as `losses_behind` counts it."""
    if not trace.balance:
        return Losses(torch.zeros(()), {}, trace.loads)
    balance = torch.stack(trace.balance).sum() * (inputs.tokens.shape[0] / denominators.rows)
    total = config.moe.seq_aux_alpha * balance
    return Losses(total, {"loss": total.detach(), "loss_balance": balance.detach()}, trace.loads)


class Pipeline:
    """This process's stages of a model, which it cuts in place, and the schedules that it passes micro-batches by."""

    def __init__(self, model: Transformer, world: World) -> None:
        self.axis, self.device, self.name = world.mesh.pipeline, world.device, world.layout.schedule
        self.config, self.count = model.config, stages_of(self.name, self.axis.size)
        every = cut_stages(model.config, self.count)
        chunks = range(self.count // self.axis.size)
        self.stages = [every[stage_of(self.name, self.axis.size, self.axis.rank, chunk)] for chunk in chunks]
        self.model = keep_stages(model, self.stages)
        self.baton = Baton()
        pause = self.baton.pass_on if self.name == "dualpipev" else None
        self.works = {stage.index: StageWork(model, stage, pause) for stage in self.stages}
        self.owed: dict[int, Owed] = {stage.index: [] for stage in self.stages}
        for stage in self.stages:
            held = [model.layers[layer] for layer in stage.layers] + ([model.mtp] if stage.is_last else [])
            if self.name != "1f1b":
                defer_weight_gradients(held, self.owed[stage.index])
            if pause is not None:
                pause_in_experts(held, pause)
        self._schedules: dict[tuple[int, ...], tuple[Schedule, list[Piece]]] = {}

    @property
    def copied(self) -> list[nn.Parameter]:
        """Weights that the first process and the last one both have a copy of."""
        at_an_end = self.axis.rank in (0, self.axis.size - 1)
        if self.name == "1f1b" and at_an_end and shares_embedding(self.config):
            return list(self.model.embedding.parameters())
        return []

    @property
    def counted(self) -> list[nn.Parameter]:
        """This process's weights without those that the first process counts already."""
        left_out = {id(weight) for weight in self.copied} if self.axis.rank else set[int]()
        return [weight for weight in self.model.parameters() if id(weight) not in left_out]

    def run(self, task: Task, notes: list[Note] | None = None) -> None:
        """Pass the micro-batches; gradients add up in the weights, parts and loads in `task`, times in `notes`.

        Raises ValueError for fewer micro-batches than the schedule can work with, or for unequal ones.
        """
        schedule, pieces = self._schedule(task)
        for work in self.works.values():
            work.task = task
        for piece in pieces:
            piece.notes = notes
        begin_pipeline(self.model)
        run_schedule(schedule, pieces, len(task.inputs))
        end_pipeline(self.model)

    @torch.no_grad()
    def evaluate(self, task: Task) -> None:
        """Pass the micro-batches forward only; parts and loads add up in `task`."""
        for work in self.works.values():
            work.task = task
        owners = [
            min(index, self.count - 1 - index) if self.count > self.axis.size else index for index in range(self.count)
        ]
        shapes = [(*inputs.tokens.shape, self.config.hidden_size) for inputs in task.inputs]
        begin_pipeline(self.model)
        run_forward(self.works, owners, shapes, self.axis, self.device)
        let_go(self.model)

    def chart(self, notes: list[Note], micro_batches: int) -> dict[str, Any]:
        """A measured step as a run keeps it, from all processes' notes."""
        every = cast(list[list[Note]], self.axis.gather(notes))
        return to_record(self.name, micro_batches, every)

    def _schedule(self, task: Task) -> tuple[Schedule, list[Piece]]:
        """The schedule for as many and as large micro-batches: torch's ones keep buffers of one size."""
        shape = self._shape(task)
        form = (len(task.inputs), *shape)
        if form not in self._schedules:
            states = torch.empty(*shape, self.config.hidden_size, device="meta", requires_grad=True)
            self._schedules[form] = build_schedule(
                self.name, self.count, self.works, self.owed, form[0], states, self.axis, self.device, self.baton
            )
        return self._schedules[form]

    def _shape(self, task: Task) -> torch.Size:
        """(B, T) of every micro-batch."""
        shapes = [inputs.tokens.shape for inputs in task.inputs]
        if len(set(shapes)) > 1:
            raise ValueError(
                f"the micro-batches of a pipeline have one size, but the last has {shapes[-1][0]} rows and the others "
                f"{shapes[0][0]}; choose a micro_batch_rows that divides the rows of each process"
            )
        return shapes[0]


def task_of(
    batches: Sequence[Batch],
    model_config: ModelConfig,
    denominators: Denominators,
    mtp_weight: float,
    world: World,
    dtype: torch.dtype = torch.float32,
    mask_documents: bool = False,
) -> Task:
    """A step's work on the device."""
    depths = model_config.num_nextn_predict_layers if mtp_weight > 0 else 0
    inputs = [Inputs.of(batch, depths, world.device, mask_documents, world.mesh.context) for batch in batches]
    return Task(inputs, denominators, mtp_weight, dtype)


def collect(
    task: Task, config: ModelConfig, device: torch.device, axes: Sequence[Axis]
) -> tuple[dict[str, Tensor], Tensor]:
    """Parts and loads (L, E) of the whole model and step, by sums along `axes`, in one message each."""
    zero = torch.zeros((), device=device)
    present = [zero + (name in task.parts) for name in PARTS]
    values = [zero + task.parts.get(name, zero) for name in PARTS]
    every = range(config.num_hidden_layers + (config.num_nextn_predict_layers if task.mtp_weight > 0 else 0))
    layers, experts = sum(config.is_moe_layer(layer) for layer in every), config.moe.n_routed_experts
    loads = torch.zeros(layers, experts if layers else 0, dtype=torch.int64, device=device)
    for row, load in task.loads.items():
        loads[row] = load
    for axis in axes:
        axis.sum([*present, *values, loads])
    parts = {name: value for name, value, there in zip(PARTS, values, present, strict=True) if there}
    return parts, loads
