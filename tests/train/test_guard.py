"""Updates that are left out, and what is told of them."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from fathom.checkpoint.state import weights_hash
from fathom.config import (
    AttentionConfig,
    ModelConfig,
    MoEConfig,
    OptimizerConfig,
    ResilienceConfig,
    ScheduleConfig,
    TrainConfig,
)
from fathom.model import Transformer
from fathom.parallel.world import World, launch
from fathom.runs import Run
from fathom.text.packing import Batch
from fathom.train.guard import LEAST, Guard
from fathom.train.loop import Place, train_language

ALONE = World(0, 1, torch.device("cpu"))
MODEL = ModelConfig(
    vocab_size=23,
    hidden_size=12,
    num_hidden_layers=1,
    attention=AttentionConfig(
        num_attention_heads=2,
        num_key_value_heads=2,
        kv_lora_rank=6,
        qk_nope_head_dim=4,
        qk_rope_head_dim=2,
        v_head_dim=4,
    ),
    moe=MoEConfig(moe_intermediate_size=6, bias_update_speed=0.01),
)
TRAIN = TrainConfig(
    steps=4,
    batch_rows=4,
    micro_batch_rows=4,
    seq_len=6,
    save_every=2,
    validate_every=0,
    optimizer=OptimizerConfig(ema_decay=0.5),
    schedule=ScheduleConfig(warmup_steps=1),
)


def test_a_spike_is_a_loss_above_so_many_running_medians() -> None:
    guard = Guard(ResilienceConfig(spike=2.0, spike_window=32, skips=2))
    for step, loss in enumerate([9.0] * 8 + [1.0] * 24):  # before there is a median to speak of nothing is a spike
        assert guard.objection(step, loss, 1.0, ALONE) == ""
    assert guard.losses == [9.0] * 8 + [1.0] * 24
    assert guard.objection(40, 2.0, 1.0, ALONE) == ""
    assert "2.5 is 2.5 times the running median 1" in guard.objection(41, 2.5, 1.0, ALONE)
    assert guard.losses[-1] == 2.0  # what was left out is no measure
    assert len(guard.losses) == 32
    assert LEAST <= 32
    again = Guard(guard.config)
    again.restore(guard.as_values())
    assert again == guard


def test_training_stops_after_so_many_left_out_in_a_row() -> None:
    guard = Guard(ResilienceConfig(skips=2))
    for loss, norm in [(math.nan, 1.0), (1.0, math.inf), (1.0, 1.0), (1.0, math.nan), (math.inf, 1.0)]:
        assert bool(guard.objection(1, loss, norm, ALONE)) == (not math.isfinite(loss + norm))
    with pytest.raises(RuntimeError, match=r"gradient is not finite at step 7.*2 updates before it"):
        guard.objection(7, 1.0, math.nan, ALONE)


def test_settings_that_mean_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match=r"resilience.spike=0.5 .* more than 1"):
        ResilienceConfig(spike=0.5)
    with pytest.raises(ValueError, match=r"resilience.skips=-1"):
        ResilienceConfig(skips=-1)
    with pytest.raises(ValueError, match=r"resilience.hang_seconds=-1"):
        ResilienceConfig(hang_seconds=-1)


def batch_of(step: int, rows: int) -> Batch:
    tokens = np.random.default_rng(step).integers(1, 23, (rows, 7))
    return Batch(
        tokens=tokens[:, :-1],
        targets=tokens[:, 1:],
        weights=np.ones((rows, 6), np.float32),
        positions=np.tile(np.arange(6), (rows, 1)),
        segments=np.zeros((rows, 6), np.int64),
    )


def train(world: World, path: Path, bad: tuple[int, ...], skips: int = 3) -> Transformer:
    """Four steps; the batches of the steps `bad` bring a loss that is not a number, to the last process alone."""
    model = Transformer(MODEL)
    model.initialise(torch.Generator().manual_seed(0))

    def spoiled(step: int, rows: int) -> Batch:
        share = rows // world.size
        batch = batch_of(step, rows).rows(world.rank * share, (world.rank + 1) * share)
        is_bad = step in bad and world.rank == world.size - 1
        return dataclasses.replace(batch, weights=batch.weights * np.nan) if is_bad else batch

    place = Place(Run(path), "pretrain", world, resilience=ResilienceConfig(skips=skips))
    train_language(place, TRAIN, model, spoiled)
    return model


def test_a_bad_batch_changes_nothing_and_its_rows_are_named(tmp_path: Path) -> None:
    train(ALONE, tmp_path / "bad", bad=(0, 1, 2, 3), skips=4)
    with torch.no_grad():
        fresh = Transformer(MODEL)
        fresh.initialise(torch.Generator().manual_seed(0))
    trained = train(ALONE, tmp_path / "bad", bad=())  # all four steps are done, so this is the model as they left it
    assert weights_hash(trained) == weights_hash(fresh)
    lines = Run(tmp_path / "bad").read_metrics("pretrain")
    assert [line["left_out_rows"] for line in lines] == [[0, 4], [4, 8], [8, 12], [12, 16]]
    assert all("not finite" in line["left_out"] for line in lines)
    with pytest.raises(RuntimeError, match="training has diverged"):
        train(ALONE, tmp_path / "stops", bad=(0, 1, 2), skips=2)


def hashes(world: World, path: Path) -> list[object]:
    return world.gather(weights_hash(train(world, path, bad=(1,))))


@pytest.mark.ranks
def test_all_processes_leave_the_same_update_out(tmp_path: Path) -> None:
    first, second = launch(2, "cpu", hashes, tmp_path)
    assert first == second
    assert ["left_out" in line for line in Run(tmp_path).read_metrics("pretrain")] == [False, True, False, False]
