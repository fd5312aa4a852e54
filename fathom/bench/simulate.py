"""A layout tried out on this machine's processors: a toy V3, spread as asked, against one process."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from fathom.config import AttentionConfig, ModelConfig, MoEConfig, OptimizerConfig, ParallelConfig
from fathom.model import Transformer
from fathom.model.parallelize import joined, let_go, local, parallelize
from fathom.parallel.world import World, launch
from fathom.plan.drawing import draw
from fathom.plan.measured import Measured, Note, from_record
from fathom.plan.notation import check_layout
from fathom.plan.schedule import least_micro_batches
from fathom.plan.timeline import stages_of
from fathom.text.packing import Batch
from fathom.train.loss import Denominators, language_losses
from fathom.train.pipeline import Pipeline, Task, task_of
from fathom.train.pipeline_step import pass_and_sum, pipeline_step
from fathom.train.step import Rates, StepReport, TrainState, accumulate, sum_over_world, train_step

STEPS, SEQ_LEN, VOCAB, MTP_WEIGHT = 3, 16, 64, 0.3
TOLERANCE = 1e-5  # relative, of losses and gradients
# an eps of the size of the gradients: without it Adam makes a whole step of the rounding of a gradient near zero
OPTIMIZER = OptimizerConfig(lr=1e-3, eps=1e-3)
RATES = Rates(lr=1e-3, clip_norm=1.0, bias_speed=0.01)


@dataclass(frozen=True)
class Share:
    """What one process had and did."""

    layers: list[int]
    elements: int  # of weights that it keeps
    sent: dict[str, int]  # bytes of one step, by what they carried


@dataclass(frozen=True)
class Run:
    """Some steps: losses, the first step's summed gradients, the selection biases at the end."""

    losses: list[float]
    gradients: dict[str, Tensor]
    biases: dict[str, Tensor]
    shares: list[Share]
    measured: Measured | None = None


@dataclass(frozen=True)
class Simulated:
    """A layout's run beside one process's."""

    layout: ParallelConfig
    found: Run
    loss_error: float  # largest relative difference
    gradient_error: float  # largest difference, relative to the largest entry of its tensor
    biases_equal: bool

    @property
    def equal(self) -> bool:
        """Whether both train the same, to rounding."""
        return self.loss_error < TOLERANCE and self.gradient_error < TOLERANCE and self.biases_equal

    @property
    def figures(self) -> dict[str, Any]:
        """For a line of JSON."""
        measured = self.found.measured
        return {
            "equal": self.equal,
            "loss_error": self.loss_error,
            "gradient_error": self.gradient_error,
            "biases_equal": self.biases_equal,
            "sent_bytes": [share.sent for share in self.found.shares],
            "idle": measured.timeline.bubble_share if measured else None,
            "idle_played_out": measured.ideal.bubble_share if measured else None,
            "idle_by_formula": measured.formula if measured else None,
        }

    def text(self) -> str:
        """For people: who holds what, what was sent, the schedule, the comparison."""
        lines = [_share_line(rank, share) for rank, share in enumerate(self.found.shares)]
        if measured := self.found.measured:
            lines += ["", "One step as measured, in milliseconds:", draw(measured.timeline)]
            lines += ["The same parts as the planner plays them out:", draw(measured.ideal), measured.sentence]
        biases = "equal to the last bit" if self.biases_equal else "DIFFERENT"
        lines += [
            "",
            f"Against one process, over {STEPS} steps: losses within {self.loss_error:.1e}, gradients of the first "
            f"step within {self.gradient_error:.1e}, selection biases {biases}.",
        ]
        return "\n".join(lines)


def simulate(layout: ParallelConfig, processes: int) -> Simulated:
    """Train a toy V3 over `processes` processes of this machine and in one, and compare.

    Raises ValueError for a layout that cannot be, with the nearest that can.
    """
    chunks = stages_of(layout.schedule, layout.pipeline) if layout.pipeline > 1 else 1
    config = toy(max(4, chunks))
    micro_batches = least_micro_batches(layout.schedule, layout.pipeline) + 2 if layout.pipeline > 1 else 2
    layout = check_layout(layout, config, processes, micro_batches, 1, SEQ_LEN)
    rows = layout.data * layout.shard * micro_batches
    expected = _train(World(0, 1, torch.device("cpu")), config, rows)
    found = launch(processes, "cpu", _train, config, rows, layout=layout)
    losses = zip(found.losses, expected.losses, strict=True)
    gradients = ((found.gradients[name], wanted) for name, wanted in expected.gradients.items())
    return Simulated(
        layout=layout,
        found=found,
        loss_error=max(abs(mine / wanted - 1) for mine, wanted in losses),
        gradient_error=max(float((mine - wanted).abs().max() / wanted.abs().max()) for mine, wanted in gradients),
        biases_equal=all(torch.equal(found.biases[name], bias) for name, bias in expected.biases.items()),
    )


def toy(layers: int) -> ModelConfig:
    """V3 in small: latent attention, a dense layer before the experts, groups, MTP."""
    return ModelConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        num_hidden_layers=layers,
        intermediate_size=64,
        initializer_range=0.1,
        attention=AttentionConfig(
            num_attention_heads=2,
            num_key_value_heads=2,
            q_lora_rank=16,
            kv_lora_rank=16,
            qk_nope_head_dim=8,
            qk_rope_head_dim=8,
            v_head_dim=8,
        ),
        moe=MoEConfig(
            n_routed_experts=16,
            num_experts_per_tok=4,
            moe_intermediate_size=16,
            first_k_dense_replace=1,
            n_group=4,
            topk_group=2,
            seq_aux_alpha=0.01,
        ),
    )


def _train(world: World, config: ModelConfig, rows: int) -> Run:
    """A few steps on this process's rows of `rows`; what came of them, gathered from all processes."""
    model = Transformer(config)
    model.initialise(torch.Generator().manual_seed(0))
    pipeline = Pipeline(model, world) if world.mesh.pipeline.size > 1 else None
    state = TrainState.start(parallelize(model, world), OPTIMIZER)
    gradients = _gradients(model, pipeline, _rows(0, rows, world), world)
    losses: list[float] = []
    record: dict[str, Any] | None = None
    sent: dict[str, int] = {}
    for step in range(STEPS):
        batches, notes = _rows(step, rows, world), list[Note]()
        report = _step(state, pipeline, batches, world, notes)
        losses.append(report.parts["loss"])
        sent = report.sent
        if pipeline is not None:
            record = pipeline.chart(notes, len(batches))
    layers = (
        [layer for stage in pipeline.stages for layer in stage.layers] if pipeline else list(range(len(model.layers)))
    )
    elements = sum(local(weight).numel() for weight in model.parameters())
    biases = {name: bias for name, bias in model.state_dict().items() if name.endswith("selection_bias")}
    parts = cast(list[tuple[dict[str, Tensor], ...]], world.gather((gradients, biases)))
    shares = cast(list[Share], world.gather(Share(layers, elements, sent)))
    return Run(
        losses,
        {name: gradient for part in parts for name, gradient in part[0].items()},
        {name: bias for part in parts for name, bias in part[1].items()},
        shares,
        from_record(record) if record else None,
    )


def _step(
    state: TrainState, pipeline: Pipeline | None, batches: Sequence[Batch], world: World, notes: list[Note]
) -> StepReport:
    if pipeline is None:
        return train_step(state, batches, _losses_of(state.model, batches, world), RATES, world)
    return pipeline_step(state, pipeline, _task(pipeline, batches, world), RATES, world, notes=notes)


def _gradients(
    model: Transformer, pipeline: Pipeline | None, batches: Sequence[Batch], world: World
) -> dict[str, Tensor]:
    """The first step's gradients, summed over the processes, of the weights that this process has a part of."""
    if pipeline is None:
        parts, loads = accumulate(model, batches, _losses_of(model, batches, world), world)
        sum_over_world(model, parts, loads, world)
    else:
        pass_and_sum(pipeline, _task(pipeline, batches, world), world)
    named = [(name, weight) for name, weight in model.named_parameters() if weight.grad is not None]
    gradients = {name: joined(local(cast(Tensor, weight.grad)), weight).clone() for name, weight in named}
    for _, weight in named:
        weight.grad = None
    let_go(model)
    return gradients


def _task(pipeline: Pipeline, batches: Sequence[Batch], world: World) -> Task:
    denominators = Denominators.of(batches, pipeline.config.num_nextn_predict_layers, world)
    return task_of(batches, pipeline.config, denominators, MTP_WEIGHT, world)


def _losses_of(model: Transformer, batches: Sequence[Batch], world: World) -> Callable[[Batch], Any]:
    denominators = Denominators.of(batches, model.config.num_nextn_predict_layers, world)
    return partial(_losses, model, denominators, world)


def _losses(model: Transformer, denominators: Denominators, world: World, batch: Batch) -> Any:
    return language_losses(model, batch, denominators, MTP_WEIGHT, world.device)


def _rows(step: int, rows: int, world: World) -> list[Batch]:
    """This process's rows of a step, one a micro-batch."""
    tokens = np.random.default_rng(step).integers(0, VOCAB, (rows, SEQ_LEN + 1))
    share = rows // world.rows.size
    whole = Batch(
        tokens=tokens[:, :-1],
        targets=tokens[:, 1:],
        weights=np.ones((rows, SEQ_LEN), np.float32),
        positions=np.tile(np.arange(SEQ_LEN), (rows, 1)),
        segments=np.zeros((rows, SEQ_LEN), np.int64),
    )
    return [whole.rows(at, at + 1) for at in range(world.rows.rank * share, (world.rows.rank + 1) * share)]


def _share_line(rank: int, share: Share) -> str:
    layers = ", ".join(map(str, share.layers))
    return f"rank {rank}: layers {layers}; {share.elements:,} weights; sent a step: {_bytes(share.sent)}"


def _bytes(sent: Mapping[str, int]) -> str:
    return ", ".join(f"{kind} {count:,} B" for kind, count in sorted(sent.items()) if count) or "nothing"
