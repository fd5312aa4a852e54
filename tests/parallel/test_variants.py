"""Products in BF16 or FP8, moments in BF16, a tied embedding: in parts as in one process, but for rounding."""

import io
import logging
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from fathom.config import ModelConfig, MoEConfig, OptimizerConfig, ParallelConfig, ScheduleConfig, TrainConfig
from fathom.model import Transformer
from fathom.model.draw import without_memory
from fathom.model.parallelize import gathered
from fathom.parallel.hush import REDISTRIBUTE
from fathom.parallel.mesh import build_mesh
from fathom.parallel.world import World, launch
from fathom.runs import Run
from fathom.text.packing import Batch
from fathom.train.loop import Place, train_language

STEPS, ROWS, SEQ = 3, 4, 16
MODEL = ModelConfig(
    vocab_size=32,
    hidden_size=16,
    num_hidden_layers=2,
    intermediate_size=24,
    num_nextn_predict_layers=1,
    initializer_range=0.2,
    moe=MoEConfig(n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=8, first_k_dense_replace=1),
)
TRAIN = TrainConfig(
    steps=STEPS,
    batch_rows=ROWS,
    micro_batch_rows=1,
    seq_len=SEQ,
    optimizer=OptimizerConfig(lr=1e-3, eps=1e-4),
    schedule=ScheduleConfig(warmup_steps=1),
)


@dataclass(frozen=True)
class Variant:
    """What is trained, and how far losses and the movement of every weight may lie from those of one process."""

    model: ModelConfig = MODEL
    train: TrainConfig = TRAIN
    dtype: torch.dtype = torch.float32
    losses: dict[str, float] = field(default_factory=lambda: {"shard2": 1e-5, "expert2": 1e-5})
    moved: dict[str, float] = field(default_factory=lambda: {"shard2": 1e-4, "expert2": 1e-4})


LAYOUTS = {
    "shard2": ParallelConfig(shard=2),
    "expert2": ParallelConfig(expert=2),
    "both": ParallelConfig(shard=2, expert=2),
    "zero3": ParallelConfig(shard=2, zero=3),
}
VARIANTS = {
    "tied": Variant(model=replace(MODEL, tie_word_embeddings=True)),
    # a moment near the border of two bfloat16 numbers falls to either side, by 1/256 of it
    "moments": Variant(
        train=replace(TRAIN, optimizer=replace(TRAIN.optimizer, moments="bfloat16")),
        moved={"shard2": 1e-3, "expert2": 1e-3},
    ),
    # an expert's gradient is made of strips of tokens, which are others where they come from two processes at once,
    # and e4m3 has 3 bits behind the first
    "fp8": Variant(
        train=replace(TRAIN, precision="fp8"),
        losses={"shard2": 1e-5, "expert2": 2e-3},
        moved={"shard2": 1e-4, "expert2": 0.15},
    ),
    # FSDP gathers weights in bfloat16 and sums gradients in float32; alone autocast rounds the same weights
    "bf16": Variant(
        dtype=torch.bfloat16,
        losses=dict.fromkeys(LAYOUTS, 1e-3),
        moved=dict.fromkeys(LAYOUTS, 0.1),
    ),
}


def batch_of(step: int, world: World) -> Batch:
    tokens = np.random.default_rng(step).integers(0, 32, (ROWS, SEQ + 1))
    ones, places = np.ones((ROWS, SEQ), np.float32), np.tile(np.arange(SEQ), (ROWS, 1))
    share = ROWS // world.rows.size
    whole = Batch(tokens[:, :-1], tokens[:, 1:], ones, places, np.zeros((ROWS, SEQ), np.int64))
    return whole.rows(world.rows.rank * share, (world.rows.rank + 1) * share)


def train(world: World, variant: Variant, path: Path) -> tuple[dict[str, Tensor], list[float]]:
    """Weights after a few steps, and every step's loss."""
    run = Run(path)
    model = without_memory(variant.model)
    place = Place(run, "pretrain", world, variant.dtype)
    state = train_language(place, variant.train, model, lambda step, rows: batch_of(step, world))
    assert {parameter.dtype for parameter in state.model.parameters()} == {torch.float32}  # masters
    weights = {name: tensor.clone() for name, tensor in gathered(state.model).state_dict().items()}
    return weights, [line["loss"] for line in run.read_metrics("pretrain")]


def train_all(world: World, path: Path) -> tuple[dict[tuple[str, str], tuple[dict[str, Tensor], list[float]]], str]:
    """What came of every variant in every layout, and what torch warned of meanwhile."""
    warned = io.StringIO()
    logging.getLogger(REDISTRIBUTE).addHandler(logging.StreamHandler(warned))
    found: dict[tuple[str, str], tuple[dict[str, Tensor], list[float]]] = {}
    for layout, config in LAYOUTS.items():
        spread = replace(world, mesh=build_mesh(config, world.size, world.device), layout=config)
        for name, variant in VARIANTS.items():
            if layout in variant.losses:
                found[layout, name] = train(spread, variant, path / f"{layout} {name}")
    return found, warned.getvalue()


@pytest.mark.ranks
def test_variants_in_parts_train_what_one_process_trains(tmp_path: Path) -> None:
    found, warned = launch(2, "cpu", train_all, tmp_path)
    assert "sequential all_gather" not in warned
    one = World(0, 1, torch.device("cpu"))
    for name, variant in VARIANTS.items():
        wanted, losses = train(one, variant, tmp_path / name)
        model = Transformer(variant.model)
        model.initialise(torch.Generator().manual_seed(0))
        begun = model.state_dict()
        for layout in variant.losses:
            weights, its = found[layout, name]
            tolerance = variant.losses[layout]
            assert its == pytest.approx(losses, rel=tolerance), (layout, name)
            assert weights.keys() == wanted.keys()
            for key, weight in wanted.items():
                moved = (weight - begun[key]).norm()
                apart = float((weights[key] - weight).norm() / moved.clamp(min=1e-12))
                assert apart <= variant.moved[layout], (layout, name, key, apart)
