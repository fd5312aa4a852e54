"""A run that is broken off and goes on: bit for bit in its layout, closely in another, past damaged checkpoints."""

import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from fathom.checkpoint.manifest import Manifest, code_hash
from fathom.checkpoint.state import list_checkpoints
from fathom.config import (
    AttentionConfig,
    ModelConfig,
    MoEConfig,
    OptimizerConfig,
    ParallelConfig,
    ResilienceConfig,
    ScheduleConfig,
    TrainConfig,
)
from fathom.model import Transformer
from fathom.parallel.world import World, launch
from fathom.runs import Run
from fathom.text.packing import Batch
from fathom.train.loop import Place, train_language
from fathom.train.preemption import EXIT_CODE, Preempted
from fathom.train.step import TrainState

ALONE = World(0, 1, torch.device("cpu"))
PARTS = ParallelConfig(checkpoint="sharded")
MODEL = ModelConfig(
    vocab_size=23,
    hidden_size=16,
    num_hidden_layers=2,
    num_nextn_predict_layers=1,
    attention=AttentionConfig(
        num_attention_heads=2,
        num_key_value_heads=2,
        kv_lora_rank=6,
        qk_nope_head_dim=4,
        qk_rope_head_dim=4,
        v_head_dim=4,
    ),
    moe=MoEConfig(moe_intermediate_size=8, bias_update_speed=0.01),
)
TRAIN = TrainConfig(
    steps=8,
    batch_rows=4,
    micro_batch_rows=4,
    seq_len=6,
    save_every=2,
    keep_checkpoints=2,
    validate_every=0,
    optimizer=OptimizerConfig(lr=1e-3, ema_decay=0.5, moments="bfloat16"),
    schedule=ScheduleConfig(warmup_steps=1, batch_ramp=0.5, batch_start=0.5),
)
RESILIENCE = ResilienceConfig(spike=50.0, spike_window=4)


def batch_of(step: int, rows: int) -> Batch:
    tokens = np.random.default_rng(step).integers(1, 23, (rows, 7))
    return Batch(
        tokens=tokens[:, :-1],
        targets=tokens[:, 1:],
        weights=np.ones((rows, 6), np.float32),
        positions=np.tile(np.arange(6), (rows, 1)),
        segments=np.zeros((rows, 6), np.int64),
    )


def train(world: World, path: Path, signal_at: int = 0, steps: int = 8) -> TrainState:
    """Train to the end, or to a signal that comes to the last process within step `signal_at`."""
    model = Transformer(MODEL)
    model.initialise(torch.Generator().manual_seed(0))

    def mine(step: int, rows: int) -> Batch:
        if step + 1 == signal_at and world.rank == world.size - 1:
            signal.raise_signal(signal.SIGUSR1)
        share = rows // world.size
        return batch_of(step, rows).rows(world.rank * share, (world.rank + 1) * share)

    place = Place(Run(path), "pretrain", replace(world, layout=PARTS), resilience=RESILIENCE)
    return train_language(place, replace(TRAIN, steps=steps), model, mine)


def everything(state: TrainState) -> dict[str, Tensor]:
    """All that training changes: weights, biases, moments, average."""
    found = dict(state.model.state_dict())
    for name, parameter in state.model.named_parameters():
        found |= {f"{name}.{entry}": tensor for entry, tensor in state.optimizer.state[parameter].items()}
    found |= {f"ema.{n}": tensor for n, tensor in enumerate(state.copies["ema"])}
    return {name: tensor.detach().clone() for name, tensor in found.items()}


def break_and_go_on(world: World, path: Path) -> dict[str, Tensor]:
    with pytest.raises(Preempted) as ended:
        train(world, path, signal_at=5)
    assert ended.value.code == EXIT_CODE
    assert ended.value.signal == "SIGUSR1"
    return everything(train(world, path))


def require_equal(found: dict[str, Tensor], wanted: dict[str, Tensor], tolerance: float = 0.0) -> None:
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype
        difference = (found[name].double() - tensor.double()).norm()
        assert float(difference) <= tolerance * float(tensor.double().norm()), name


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    return everything(train(ALONE, tmp_path_factory.mktemp("unbroken")))


def test_a_signal_ends_training_with_a_checkpoint_and_the_next_run_goes_on_bit_for_bit(
    unbroken: dict[str, Tensor], tmp_path: Path
) -> None:
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)]
    require_equal(break_and_go_on(ALONE, tmp_path), unbroken)
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)] == handlers
    lines = Run(tmp_path).read_metrics("pretrain")
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert [line.get("preempted") for line in lines] == [None] * 4 + ["SIGUSR1"] + [None] * 3
    assert [path.name for path in list_checkpoints(tmp_path / "pretrain")] == ["step_000006", "step_000008"]


def test_the_manifest_says_where_training_was_and_what_made_it(tmp_path: Path) -> None:
    train(ALONE, tmp_path, steps=4)
    manifest = Manifest.read(list_checkpoints(tmp_path / "pretrain")[-1])
    assert manifest.code == code_hash()
    values = manifest.values
    assert (values["step"], values["world"], values["mesh"]["pipeline"]) == (4, 1, 1)
    assert values["data"]["rows"] == [0, sum(line["rows"] for line in Run(tmp_path).read_metrics("pretrain"))]
    assert values["data"]["schedule"] == [4, 4]
    assert len(values["guard"]["losses"]) == 4
    assert values["copies"] == {"ema": "by weight"}


def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_it_goes_on(
    unbroken: dict[str, Tensor], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(Preempted):
        train(ALONE, tmp_path, signal_at=7)
    newest = list_checkpoints(tmp_path / "pretrain")[-1]
    shard = next(newest.glob("shard-*"))
    shard.write_bytes(shard.read_bytes()[:-1])
    require_equal(everything(train(ALONE, tmp_path)), unbroken)
    assert shard.name in caplog.text
    assert (newest.parent / f"damaged-{newest.name}").exists()
    for path in list_checkpoints(newest.parent):
        next(path.glob("shard-*")).unlink()
    with pytest.raises(ValueError, match=r"no checkpoint before it is left.*shard-00001"):
        train(ALONE, tmp_path)


def test_a_copy_that_does_not_follow_the_weights_comes_back_too(tmp_path: Path) -> None:
    from fathom.checkpoint.sharded import Saver
    from fathom.train.keep import keep_parts, restore

    state = train(ALONE, tmp_path / "run", steps=1)
    state.copies["critic"] = [torch.tensor([1.0, 2.0]), torch.tensor(3, dtype=torch.int64)]
    torch.manual_seed(5)
    saver = Saver()
    keep_parts(saver, tmp_path / "own", state, ALONE, {}, keep=1)
    saver.wait()
    drawn = torch.rand(3)
    again = TrainState.start(Transformer(MODEL), TRAIN.optimizer)
    restore(tmp_path / "own", again, ALONE)
    assert torch.equal(torch.rand(3), drawn)  # the generator stands where it stood
    require_equal(everything(again), everything(state))
    assert [t.tolist() for t in again.copies["critic"]] == [[1.0, 2.0], 3]
    assert again.step == 1


def on_two(world: World, path: Path) -> list[object]:
    """Unbroken, broken, and broken in a world of two with the rest to be done by another."""
    whole = everything(train(world, path / "whole"))
    broken = break_and_go_on(world, path / "broken")
    with pytest.raises(Preempted):
        train(world, path / "moved", signal_at=5)
    return world.gather((whole, broken))


@pytest.mark.ranks
def test_two_processes_go_on_bit_for_bit_and_one_goes_on_for_them_closely(
    unbroken: dict[str, Tensor], tmp_path: Path
) -> None:
    for whole, broken in launch(2, "cpu", on_two, tmp_path):
        require_equal(broken, whole)
    moved = everything(train(ALONE, tmp_path / "moved"))
    require_equal(moved, whole, tolerance=5e-3)  # of moments in bfloat16: one rounding is 2^-8 of a number
    weights = [name for name in moved if name in dict(Transformer(MODEL).named_parameters())]
    require_equal({n: moved[n] for n in weights}, {n: whole[n] for n in weights}, tolerance=1e-5)
