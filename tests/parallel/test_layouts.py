"""Every layout trains what one process trains: losses, gradients, weights, and the selection bias to the last bit.

All layouts of as many processes share one world, whose mesh is built anew for each. On GPUs, one a process, messages go
by NCCL; these cases are skipped where there are too few, and have not been run yet.
"""

from collections.abc import Sequence
from dataclasses import replace
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
from fathom.model.draw import without_memory
from fathom.model.parallelize import gathered, joined, local, parallelize
from fathom.parallel.mesh import build_mesh
from fathom.parallel.world import World, launch
from fathom.plan.layout import Layout
from fathom.plan.messages import expert_bytes, state_bytes, sum_bytes
from fathom.runs import Run
from fathom.text.packing import Batch
from fathom.train.loop import Place, split_rows, train_language
from fathom.train.loss import Denominators, Losses, language_losses
from fathom.train.step import accumulate, sum_over_world

MODEL = ModelConfig(
    vocab_size=32,
    hidden_size=16,
    num_hidden_layers=2,
    intermediate_size=24,
    num_nextn_predict_layers=1,
    initializer_range=0.2,
    attention=AttentionConfig(
        num_attention_heads=2,
        num_key_value_heads=2,
        q_lora_rank=8,
        kv_lora_rank=8,
        qk_nope_head_dim=4,
        qk_rope_head_dim=4,
        v_head_dim=4,
    ),
    moe=MoEConfig(
        n_routed_experts=8,
        num_experts_per_tok=3,
        n_shared_experts=1,
        moe_intermediate_size=8,
        first_k_dense_replace=1,
        n_group=4,
        topk_group=2,
        bias_update_speed=0.01,
        seq_aux_alpha=0.01,
    ),
)
STEPS, ROWS, SEQ = 5, 16, 8
TRAIN = TrainConfig(
    steps=STEPS,
    batch_rows=ROWS,
    micro_batch_rows=1,
    seq_len=SEQ,
    save_every=3,
    validate_every=2,
    optimizer=OptimizerConfig(lr=1e-3, eps=1e-4, clip_norm=0.5, ema_decay=0.5),
    schedule=ScheduleConfig(warmup_steps=2, mtp_switch=1.0, bias_freeze=1.0),
)
LAYOUTS: list[tuple[str, ParallelConfig, int]] = [
    ("data2", ParallelConfig(), 2),
    ("shard2", ParallelConfig(shard=2), 2),
    ("shard2 zero3", ParallelConfig(shard=2, zero=3), 2),
    ("expert2", ParallelConfig(expert=2), 2),
    ("expert2 shard2 zero3", ParallelConfig(expert=2, shard=2, zero=3), 2),
    ("expert2 selective", ParallelConfig(expert=2, recompute="selective"), 2),
    ("expert2 shard2 full", ParallelConfig(expert=2, shard=2, recompute="full"), 2),
    ("context2", ParallelConfig(context=2), 2),
    ("expert2 context2", ParallelConfig(expert=2, context=2), 2),
    ("expert2 context2 selective", ParallelConfig(expert=2, context=2, recompute="selective"), 2),
    ("data4", ParallelConfig(), 4),
    ("context4", ParallelConfig(context=4), 4),
    ("context2 shard2", ParallelConfig(context=2, shard=2), 4),
    ("context2 shard2 zero3 full", ParallelConfig(context=2, shard=2, zero=3, recompute="full"), 4),
    ("expert4 context2", ParallelConfig(expert=4, context=2), 4),
    ("data2 shard2", ParallelConfig(shard=2), 4),
    ("data2 shard2 zero3", ParallelConfig(shard=2, zero=3), 4),
    ("expert4", ParallelConfig(expert=4), 4),
    ("expert2 shard2 data2", ParallelConfig(expert=2, shard=2), 4),
    ("expert2 data4 full", ParallelConfig(expert=2, recompute="full"), 4),
    ("expert4 shard4 zero3 selective", ParallelConfig(expert=4, shard=4, zero=3, recompute="selective"), 4),
    ("data8", ParallelConfig(), 8),
    ("data2 shard4", ParallelConfig(shard=4), 8),
    ("expert8", ParallelConfig(expert=8), 8),
    ("expert4 data2 shard4 zero3 full", ParallelConfig(expert=4, shard=4, zero=3, recompute="full"), 8),
]


def batch_of(step: int, rows: int, rank: int = 0, ranks: int = 1) -> Batch:
    """This rank's rows of a step: documents packed at random borders, some places without a loss."""
    rng = np.random.default_rng(step)
    tokens = rng.integers(1, 32, (rows, SEQ + 1))
    segments = np.cumsum(rng.random((rows, SEQ)) < 0.2, axis=1)
    share = rows // ranks
    return Batch(
        tokens=tokens[:, :-1],
        targets=tokens[:, 1:],
        weights=(rng.random((rows, SEQ)) < 0.8).astype(np.float32),
        positions=np.tile(np.arange(SEQ), (rows, 1)),
        segments=segments,
    ).rows(rank * share, (rank + 1) * share)


def whole_model() -> Transformer:
    model = Transformer(MODEL)
    model.initialise(torch.Generator().manual_seed(0))
    return model


def gradients(world: World) -> dict[str, Tensor]:
    """The summed gradients of the first step, whole."""
    model = parallelize(whole_model(), world)
    micro_batches = split_rows(batch_of(0, ROWS, world.rows.rank, world.rows.size), 2)
    denominators = Denominators.of(micro_batches, 1, world)

    def losses_of(batch: Batch) -> Losses:
        return language_losses(model, batch, denominators, 0.3, world.device)

    parts, loads = accumulate(model, micro_batches, losses_of, world)
    sum_over_world(model, parts, loads, world)
    return {name: joined(local(p.grad), p).clone() for name, p in model.named_parameters() if p.grad is not None}


def train(world: World, path: Path) -> dict[str, object]:
    """Five steps by the trainer, and what came of them."""
    run = Run(path)
    rank, ranks = world.rows.rank, world.rows.size
    place = Place(run, "pretrain", world)
    state = train_language(
        place,
        TRAIN,
        without_memory(MODEL),  # each process draws its own parts, of what `whole_model` draws
        lambda step, rows: batch_of(step, rows, rank, ranks),
        [batch_of(99, 8, rank, ranks)],
        mask_documents=True,
    )
    weights = {name: tensor.clone() for name, tensor in gathered(state.model).state_dict().items()}
    average = gather_copy(state.copies["ema"])
    return {
        "weights": weights,
        "average": average,
        "gradients": gradients(world),
        "lines": run.read_metrics("pretrain"),
    }


def gather_copy(copy: list[Tensor]) -> dict[str, Tensor]:
    return {str(index): joined(local(tensor), tensor).clone() for index, tensor in enumerate(copy)}


def train_all(world: World, layouts: Sequence[tuple[str, ParallelConfig]], path: Path) -> dict[str, dict[str, object]]:
    """The results of every layout on these processes."""
    results: dict[str, dict[str, object]] = {}
    for name, layout in layouts:
        spread = replace(world, mesh=build_mesh(layout, world.size, world.device), layout=layout)
        results[name] = train(spread, path / name.replace(" ", "-"))
    return results


Found = dict[tuple[str, int], dict[str, dict[str, object]]]


@pytest.fixture(scope="module")
def found_so_far() -> Found:
    """Results of every layout by device and number of processes, filled when they are first asked for."""
    return {}


def results_of(name: str, ranks: int, device: str, known: Found, factory: pytest.TempPathFactory) -> dict[str, object]:
    if (device, ranks) not in known:
        layouts = [(name, layout) for name, layout, size in LAYOUTS if size == ranks] or [(name, ParallelConfig())]
        known[device, ranks] = launch(
            ranks,
            device,
            train_all,
            layouts,
            factory.mktemp(f"{device}{ranks}"),
            gpu_workers=ranks if device == "cuda" else 1,
        )
    return known[device, ranks][name]


def marks_of(device: str, ranks: int) -> list[pytest.MarkDecorator]:
    marks = [pytest.mark.ranks] + [pytest.mark.slow] * (ranks > 4)
    if device == "cuda":
        too_few = torch.cuda.device_count() < ranks
        marks += [pytest.mark.gpu, pytest.mark.skipif(too_few, reason=f"needs {ranks} GPUs")]
    return marks


# The largest difference relative to a tensor's largest number. GPUs add up in an order of their own at every run.
TOLERANCE = {"cpu": 1e-5, "cuda": 1e-4}
CASES = [
    pytest.param(name, ranks, device, id=name if device == "cpu" else f"{name} nccl", marks=marks_of(device, ranks))
    for device in TOLERANCE
    for name, _, ranks in LAYOUTS
]


@pytest.mark.parametrize(("name", "ranks", "device"), CASES)
def test_a_layout_trains_what_one_process_trains(
    name: str,
    ranks: int,
    device: str,
    found_so_far: Found,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    alone = results_of("alone", 1, device, found_so_far, tmp_path_factory)
    found = results_of(name, ranks, device, found_so_far, tmp_path_factory)
    tolerance = TOLERANCE[device]
    for kind in ("gradients", "weights", "average"):
        assert found[kind].keys() == alone[kind].keys()
        for key, wanted in alone[kind].items():
            error = (found[kind][key] - wanted).abs().max() / wanted.abs().max().clamp(min=1e-3)
            assert error < tolerance, (kind, key, float(error))
            if key.endswith("selection_bias"):
                assert torch.equal(found[kind][key], wanted), key
                assert bool(wanted.any())
    for line, wanted in zip(found["lines"], alone["lines"], strict=True):
        assert ("validation_loss" in line) == (line["step"] % TRAIN.validate_every == 0)
        for key in ("loss", "loss_main", "loss_mtp", "loss_balance", "grad_norm", "validation_loss"):
            if key in wanted:
                assert line[key] == pytest.approx(wanted[key], rel=tolerance), (key, line["step"])
        assert line["expert_shares"] == wanted["expert_shares"]  # loads are counted once
        assert line["rows"] == ROWS


@pytest.mark.parametrize(("name", "ranks", "device"), CASES)
def test_a_step_sends_what_the_planner_says(
    name: str,
    ranks: int,
    device: str,
    found_so_far: Found,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    c = next(layout for known, layout, _ in LAYOUTS if known == name)
    layout = Layout(
        data=ranks // c.model_ways,
        shard=c.shard,
        zero=c.zero,
        expert=c.expert,
        context=c.context,
        micro_batches=ROWS * c.context // ranks,
        precision="fp32",
    )
    wanted = state_bytes(MODEL, layout)
    losses, loads = 5, 2 * MODEL.moe.n_routed_experts  # which travel with the gradients where these are not in parts
    notes = sum_bytes(losses + loads, ranks)
    lines = results_of(name, ranks, device, found_so_far, tmp_path_factory)["lines"]
    for line in lines:
        sent = line["sent_bytes"]
        assert sent.get("weights", 0) == pytest.approx(wanted["weights"], rel=1e-3)
        extra = notes if c.shard == 1 else 0
        assert sent["gradients"] == pytest.approx(wanted["gradients"] + extra, rel=1e-3)
    if c.expert > 1:
        kinds = [f"{kind}{way}" for kind in ("routes", "dispatch", "combine") for way in ("", " gradient")]
        exchanged = sum(line["sent_bytes"].get(kind, 0) for line in lines for kind in kinds) / len(lines)
        expected = expert_bytes(MODEL, ROWS * SEQ // ranks, c.expert, recompute=c.recompute)
        assert exchanged == pytest.approx(expected, rel=0.25), exchanged / expected  # routing is not even
