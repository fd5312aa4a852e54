"""A pipeline against one process: losses, gradients, weights, router bias."""

import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from fathom.config import (
    AttentionConfig,
    ModelConfig,
    MoEConfig,
    OptimizerConfig,
    ParallelConfig,
    ScheduleConfig,
    TrainConfig,
)
from fathom.model import Transformer
from fathom.model.parallelize import gathered, joined, let_go, local, parallelize, whole
from fathom.model.pipeline import cut_stages
from fathom.parallel.mesh import build_mesh
from fathom.parallel.world import World, launch
from fathom.plan.measured import Note, from_record
from fathom.plan.soundness import check_parts
from fathom.runs import Run
from fathom.text.packing import Batch
from fathom.train.loop import Place, train_language
from fathom.train.loss import Denominators, language_losses
from fathom.train.pipeline import Pipeline, Task, collect, task_of
from fathom.train.pipeline_step import pass_and_sum, pipeline_step
from fathom.train.step import Rates, TrainState, train_step

CPU = torch.device("cpu")
ALONE = World(0, 1, CPU)
MODEL = ModelConfig(
    vocab_size=31,
    hidden_size=16,
    num_hidden_layers=4,
    intermediate_size=24,
    initializer_range=0.2,
    num_nextn_predict_layers=1,
    attention=AttentionConfig(
        num_attention_heads=2,
        num_key_value_heads=2,
        kv_lora_rank=8,
        qk_nope_head_dim=4,
        qk_rope_head_dim=4,
        v_head_dim=4,
    ),
    moe=MoEConfig(moe_intermediate_size=8, bias_update_speed=0.01, first_k_dense_replace=1, seq_aux_alpha=0.01),
)
STEPS, ROWS, TIME, WEIGHT = 5, 8, 8, 0.3
# an eps of the size of the gradients: without it Adam turns the rounding of a gradient near zero into a whole step
OPTIMIZER = OptimizerConfig(lr=1e-3, eps=1e-3, weight_decay=0.1, ema_decay=0.5)
RATES = Rates(lr=1e-3, clip_norm=0.5, bias_speed=0.01, ema_decay=0.5)


@dataclass(frozen=True)
class Outcome:
    """What a run leaves: reports of all steps, gradients of the first, weights and EMA of the last."""

    reports: list[tuple[dict[str, float], float, list[list[int]]]]
    gradients: dict[str, Tensor]
    weights: dict[str, Tensor]
    ema: dict[str, Tensor]


def build(config: ModelConfig) -> Transformer:
    model = Transformer(config)
    model.initialise(torch.Generator().manual_seed(0))
    return model


def batch_of(step: int) -> Batch:
    """Rows of two documents and padding, so that micro-batches hold different numbers of tokens."""
    rng = np.random.default_rng(step)
    tokens = rng.integers(1, 31, (ROWS, TIME + 1))
    lengths, places = rng.integers(3, TIME + 1, (ROWS, 1)), np.arange(TIME)
    second = places >= lengths // 2
    return Batch(
        tokens=tokens[:, :-1],
        targets=tokens[:, 1:],
        weights=((places < lengths) & (places > 0)).astype(np.float32),
        positions=np.where(second, places - lengths // 2, places),
        segments=np.where(places < lengths, second.astype(np.int64), -1),
    )


def micro_batches_of(step: int, rows: int, rank: int = 0, size: int = 1) -> list[Batch]:
    share = ROWS // size
    mine = batch_of(step).rows(rank * share, (rank + 1) * share)
    return [mine.rows(at, at + rows) for at in range(0, share, rows)]


@cache
def alone(config: ModelConfig, weight: float) -> Outcome:
    """One process."""
    state = TrainState.start(build(config), OPTIMIZER)
    reports, gradients = [], {}
    for step in range(STEPS):
        batches = micro_batches_of(step, 2)
        denominators = Denominators.of(batches, len(state.model.mtp), ALONE)
        losses_of = partial(_losses, state.model, denominators, weight)
        if step == 0:
            gradients = _gradients_alone(config, batches, weight)
        report = train_step(state, batches, losses_of, RATES, ALONE)
        reports.append((report.parts, report.grad_norm, report.loads.tolist()))
    weights = {name: weight.detach().clone() for name, weight in state.model.state_dict().items()}
    return Outcome(reports, gradients, weights, dict(zip(weights, state.copies["ema"], strict=True)))


def _losses(model: Transformer, denominators: Denominators, weight: float, batch: Batch):
    return language_losses(model, batch, denominators, weight, CPU, mask_documents=True)


def _gradients_alone(config: ModelConfig, batches: Sequence[Batch], weight: float) -> dict[str, Tensor]:
    model = build(config)
    denominators = Denominators.of(batches, len(model.mtp), ALONE)
    for batch in batches:
        _losses(model, denominators, weight, batch).total.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def spread(world: World, parallel: ParallelConfig, config: ModelConfig, rows: int, weight: float) -> list[Outcome]:
    """The same run spread over `world`; what every process has at its end."""
    world = replace(world, mesh=build_mesh(parallel, world.size, world.device), layout=parallel)
    model = build(config)
    pipeline = Pipeline(model, world)
    state = TrainState.start(parallelize(model, world), OPTIMIZER)
    reports, gradients = [], {}
    for step in range(STEPS):
        batches = micro_batches_of(step, rows, world.rows.rank, world.rows.size)
        denominators = Denominators.of(batches, config.num_nextn_predict_layers, world)
        if step == 0:
            pass_and_sum(pipeline, task_of(batches, config, denominators, weight, world, mask_documents=True), world)
            gradients = {n: joined(local(p.grad), p).clone() for n, p in model.named_parameters() if p.grad is not None}
            for parameter in model.parameters():
                parameter.grad = None
            let_go(model)
        task = task_of(batches, config, denominators, weight, world, mask_documents=True)
        report = pipeline_step(state, pipeline, task, RATES, world)
        reports.append((report.parts, report.grad_norm, report.loads.tolist()))
    if parallel.schedule == "dualpipev":
        assert pipeline.baton.pairs > 0
    _check_bytes(pipeline, task, report.sent)
    _check_chart(pipeline, task, world)
    _check_validation(pipeline, world)
    weights = {name: whole(weight.detach()).clone() for name, weight in model.state_dict().items()}
    ema = {name: whole(copy).clone() for name, copy in zip(weights, state.copies["ema"], strict=True)}
    outcomes = world.gather(Outcome(reports, gradients, weights, ema))
    return [outcome for outcome in outcomes if isinstance(outcome, Outcome)]


def _check_bytes(pipeline: Pipeline, task: Task, sent: dict[str, int]) -> None:
    """States travel where the next stage, or the one before, lies elsewhere."""
    ranks, twice = pipeline.axis.size, pipeline.count > pipeline.axis.size
    state = task.inputs[0].tokens.numel() * pipeline.config.hidden_size * 4 * len(task.inputs)
    forth = sum(s.index != pipeline.count - 1 and not (twice and s.index == ranks - 1) for s in pipeline.stages)
    back = sum(s.index != 0 and not (twice and s.index == ranks) for s in pipeline.stages)
    assert (sent.get("states", 0), sent.get("states gradient", 0)) == (forth * state, back * state)


def _check_chart(pipeline: Pipeline, task: Task, world: World) -> None:
    """A measured step is a training step: the planner's parts, each once, on the rank that has the stage."""
    notes: list[Note] = []
    pipeline.run(task, notes)
    measured = from_record(pipeline.chart(notes, len(task.inputs)))
    kinds = Counter(cell.kind for cell in measured.timeline.cells)
    assert kinds == Counter(cell.kind for cell in measured.ideal.cells)
    check_parts(measured.timeline)


def _check_validation(pipeline: Pipeline, world: World) -> None:
    """Forward passes alone give the loss of the whole model, gathered from the processes."""
    mine = {name: whole(tensor) for name, tensor in pipeline.model.state_dict().items()}
    state = {name: tensor for part in world.gather(mine) for name, tensor in part.items()}
    model = Transformer(pipeline.config)
    model.load_state_dict(state)
    batches = micro_batches_of(9, 2)
    denominators = Denominators.of(batches, 0, ALONE)
    wanted = sum(float(_losses(model, denominators, 0.0, batch).parts["loss_main"]) for batch in batches)
    task = task_of(batches, pipeline.config, denominators, 0.0, world, mask_documents=True)
    pipeline.evaluate(task)
    parts, _ = collect(task, pipeline.config, world.device, (pipeline.axis, world.mesh.context))
    assert float(parts["loss_main"]) == pytest.approx(wanted, rel=1e-5)


def spread_all(world: World, cases: Sequence[tuple]) -> list[list[Outcome]]:
    """Several layouts in the same processes: starting them takes longer than the steps."""
    return [spread(world, *case) for case in cases]


def compare(outcomes: list[Outcome], expected: Outcome) -> None:
    """Every process's numbers against one process's; together they have all weights."""
    for outcome in outcomes:
        for (parts, norm, loads), (wanted, wanted_norm, wanted_loads) in zip(
            outcome.reports, expected.reports, strict=True
        ):
            assert parts == pytest.approx(wanted, rel=1e-5)
            assert norm == pytest.approx(wanted_norm, rel=1e-5)
            assert loads == wanted_loads
        for mine, theirs in ((outcome.weights, expected.weights), (outcome.ema, expected.ema)):
            for name, weight in mine.items():
                if name.endswith("selection_bias"):
                    assert torch.equal(weight, theirs[name]), name
                else:
                    torch.testing.assert_close(weight, theirs[name], rtol=1e-5, atol=1e-6)
    assert {name for outcome in outcomes for name in outcome.weights} == expected.weights.keys()


def compare_gradients(outcomes: list[Outcome], expected: Outcome) -> None:
    """Summed already wherever several processes have a part of them; relative to the largest of the tensor."""
    for name, wanted in expected.gradients.items():
        for outcome in outcomes:
            if name in outcome.gradients:
                atol = 1e-5 * float(wanted.abs().max())
                torch.testing.assert_close(outcome.gradients[name], wanted, rtol=1e-5, atol=atol)
    assert {name for outcome in outcomes for name in outcome.gradients} == expected.gradients.keys()


TIED = replace(MODEL, tie_word_embeddings=True, num_nextn_predict_layers=0)
TWO = [
    (ParallelConfig(pipeline=2), MODEL, 2, WEIGHT),
    (ParallelConfig(pipeline=2, schedule="zbv"), MODEL, 2, WEIGHT),
    (ParallelConfig(pipeline=2, schedule="dualpipev"), MODEL, 1, WEIGHT),
    (ParallelConfig(pipeline=2), TIED, 2, WEIGHT),
    (ParallelConfig(pipeline=2, schedule="dualpipev"), TIED, 2, WEIGHT),
    (ParallelConfig(pipeline=2), MODEL, 2, 0.0),
]


DEEP = replace(MODEL, num_hidden_layers=8)
FOUR = [
    (ParallelConfig(pipeline=4), MODEL, 2, WEIGHT),
    (ParallelConfig(pipeline=4, schedule="dualpipev"), DEEP, 1, WEIGHT),
    (ParallelConfig(pipeline=2, data=2, schedule="zbv"), MODEL, 1, WEIGHT),
    (ParallelConfig(pipeline=2, expert=2), MODEL, 1, WEIGHT),
    (ParallelConfig(pipeline=2, expert=2, schedule="dualpipev", recompute="selective"), MODEL, 1, WEIGHT),
    (ParallelConfig(pipeline=2, context=2), MODEL, 2, WEIGHT),
    (ParallelConfig(pipeline=2, context=2, schedule="dualpipev"), MODEL, 1, WEIGHT),
    (ParallelConfig(pipeline=2, shard=2), MODEL, 1, WEIGHT),
    (ParallelConfig(pipeline=2, shard=2, expert=2, schedule="dualpipev"), MODEL, 1, WEIGHT),
]
EIGHT = [
    (ParallelConfig(pipeline=2, expert=2, recompute="full"), MODEL, 1, WEIGHT),
    (ParallelConfig(pipeline=2, expert=2, shard=2, recompute="selective"), MODEL, 1, WEIGHT),
]


@pytest.mark.ranks
@pytest.mark.parametrize(
    ("processes", "cases"),
    [(2, TWO), pytest.param(4, FOUR, marks=pytest.mark.slow), pytest.param(8, EIGHT, marks=pytest.mark.slow)],
)
def test_a_pipeline_trains_as_one_process_does(processes: int, cases: list[tuple]) -> None:
    for case, outcomes in zip(cases, launch(processes, "cpu", spread_all, cases), strict=True):
        expected = alone(case[1], case[3])
        compare(outcomes, expected)
        compare_gradients(outcomes, expected)
        copies = [outcome.weights["embedding.weight"] for outcome in outcomes if "embedding.weight" in outcome.weights]
        assert all(torch.equal(copy, copies[0]) for copy in copies)


def test_stages_are_balanced_with_the_head_and_mtp_as_work_of_the_last() -> None:
    stages = cut_stages(replace(MODEL, num_hidden_layers=12), 3)
    assert [layer for stage in stages for layer in stage.layers] == list(range(12))
    assert len(stages[-1].layers) < len(stages[0].layers)


def refused(world: World, schedule: str, micro_batches: int, rows: int) -> str:
    """What a pipeline says to so many micro-batches, the last of them of `rows` rows."""
    config = ParallelConfig(pipeline=2, schedule=schedule)
    world = replace(world, mesh=build_mesh(config, world.size, world.device), layout=config)
    pipeline = Pipeline(build(MODEL), world)
    batches = [batch_of(0).rows(0, 2)] * (micro_batches - 1) + [batch_of(0).rows(0, rows)]
    with pytest.raises(ValueError) as error:
        pipeline.run(task_of(batches, MODEL, Denominators(1.0, (1.0,), 1.0), WEIGHT, world))
    return str(error.value)


def refused_all(world: World) -> list[str]:
    return [refused(world, "dualpipev", 3, 2), refused(world, "1f1b", 2, 1)]


@pytest.mark.ranks
def test_too_few_or_unequal_micro_batches_are_refused_with_what_would_do() -> None:
    few, unequal = launch(2, "cpu", refused_all)
    assert few == ("dualpipev on 2 ranks needs at least 4 micro-batches a step (two for every rank), not 3; choose 4")
    assert "the last has 1 rows and the others 2; choose a micro_batch_rows that divides" in unequal


def test_fewer_layers_than_stages_are_refused() -> None:
    with pytest.raises(ValueError, match="5 stages of whole layers cannot be cut from 4 layers; choose 1 to 4 stages"):
        cut_stages(MODEL, 5)


TRAIN = TrainConfig(
    steps=3,
    batch_rows=ROWS,
    micro_batch_rows=2,
    seq_len=TIME,
    save_every=2,
    validate_every=3,
    optimizer=OPTIMIZER,
    schedule=ScheduleConfig(warmup_steps=1, mtp_switch=1.0, bias_freeze=1.0),
)


def train_by_the_loop(world: World, path: Path, layouts: Sequence[ParallelConfig]) -> None:
    """The trainer itself, anew for every layout; the last one goes on from the first one's checkpoint of step 2."""
    for number, layout in enumerate(layouts):
        spread_world = replace(world, mesh=build_mesh(layout, world.size, world.device), layout=layout)
        run = Run(path / str(number))
        if number == len(layouts) - 1 and number and world.is_main:
            shutil.copytree(path / "0" / "pretrain" / "step_000002", run.path / "pretrain" / "step_000002")
        world.barrier()
        state = train_language(
            Place(run, "pretrain", spread_world),
            TRAIN,
            build(MODEL),
            lambda step, rows: batch_of(step).rows(0, rows),
            [batch_of(9).rows(0, 3), batch_of(8)],  # of unequal sizes
            mask_documents=True,
        )
        whole_model = gathered(state.model, spread_world.mesh.pipeline)
        for name, weight in state.model.state_dict().items():
            assert torch.equal(whole_model.state_dict()[name], weight)


@pytest.mark.ranks
def test_the_trainer_runs_a_pipeline_keeps_its_chart_and_moves_between_cuts(tmp_path: Path) -> None:
    train_by_the_loop(ALONE, tmp_path / "alone", [ParallelConfig()])
    expected = Run(tmp_path / "alone" / "0").read_metrics("pretrain")
    layouts = [ParallelConfig(pipeline=2), ParallelConfig(pipeline=2, schedule="dualpipev")]
    launch(2, "cpu", train_by_the_loop, tmp_path, layouts)
    for number, steps in ((0, (1, 2, 3)), (1, (3,))):
        lines = Run(tmp_path / str(number)).read_metrics("pretrain")
        assert tuple(line["step"] for line in lines) == steps
        for line in lines:
            wanted = expected[line["step"] - 1]
            for key in ("loss", "loss_main", "loss_mtp", "grad_norm", *(["validation_loss"] * (line["step"] == 3))):
                assert line[key] == pytest.approx(wanted[key], rel=1e-5), (key, line["step"])
            assert line["expert_shares"] == wanted["expert_shares"]
    (record,) = Run(tmp_path / "0").read_pipeline("pretrain")
    assert record["step"] == 2 and from_record(record).timeline.micro_batches == ROWS // 2
