"""A run that is broken off and goes on: bit for bit in its layout, closely in another, past damaged checkpoints."""

import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from fathom.checkpoint.files import list_checkpoints
from fathom.checkpoint.manifest import Manifest, code_hash
from fathom.checkpoint.sharded import is_sharded
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
from fathom.model.draw import without_memory
from fathom.model.parallelize import joined, whole
from fathom.parallel.mesh import build_mesh
from fathom.parallel.world import World, launch
from fathom.runs import Run
from fathom.text.packing import Batch
from fathom.train.loop import Place, train_language
from fathom.train.optimizer import owned_parameters
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


def train(
    world: World, path: Path, signal_at: int = 0, config: TrainConfig = TRAIN, layout: ParallelConfig = PARTS
) -> TrainState:
    """Train to the end, or to a signal that comes to the last process within step `signal_at`."""
    world = replace(world, mesh=build_mesh(layout, world.size, world.device), layout=layout)
    model = without_memory(MODEL)  # drawn where nothing is to be resumed

    def mine(step: int, rows: int) -> Batch:
        if step + 1 == signal_at and world.rank == world.size - 1:
            signal.raise_signal(signal.SIGUSR1)
        share = rows // world.rows.size
        return batch_of(step, rows).rows(world.rows.rank * share, (world.rows.rank + 1) * share)

    place = Place(Run(path), "pretrain", world, resilience=RESILIENCE)
    return train_language(place, config, model, mine)


def everything(state: TrainState) -> dict[str, Tensor]:
    """All that training changes, whole: weights, biases, moments, average."""
    found = {name: whole(tensor) for name, tensor in state.model.state_dict().items()}
    for name, parameter, own in owned_parameters(state.model, state.optimizer):
        for entry, tensor in state.optimizer.state[own].items():
            found[f"{name}.{entry}"] = joined(tensor, parameter) if tensor.ndim else tensor
    found |= {f"ema.{n}": whole(tensor) for n, tensor in enumerate(state.copies["ema"])}
    return {name: tensor.detach().clone() for name, tensor in found.items()}


def break_off(world: World, path: Path, config: TrainConfig = TRAIN, layout: ParallelConfig = PARTS) -> None:
    with pytest.raises(Preempted) as ended:
        train(world, path, 5, config, layout)
    assert ended.value.code == EXIT_CODE
    assert ended.value.signal == "SIGUSR1"


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
    break_off(ALONE, tmp_path)
    require_equal(everything(train(ALONE, tmp_path)), unbroken)
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)] == handlers
    lines = Run(tmp_path).read_metrics("pretrain")
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert [line.get("preempted") for line in lines] == [None] * 4 + ["SIGUSR1"] + [None] * 3
    assert [path.name for path in list_checkpoints(tmp_path / "pretrain")] == ["step_000006", "step_000008"]


def test_the_manifest_says_where_training_was_and_what_made_it(tmp_path: Path) -> None:
    train(ALONE, tmp_path, config=replace(TRAIN, steps=4))
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

    state = train(ALONE, tmp_path / "run", config=replace(TRAIN, steps=1))
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


LAYOUTS = {
    "shard2": ParallelConfig(shard=2),
    "expert2 shard2 zero3": ParallelConfig(expert=2, shard=2, zero=3),
    "expert2": ParallelConfig(expert=2),
}
# a growing batch is rounded to the readers' number; a small eps would make much of gradients that are next to nothing
EVEN = replace(
    TRAIN,
    optimizer=OptimizerConfig(lr=1e-3, eps=1e-4, ema_decay=0.5),
    schedule=ScheduleConfig(warmup_steps=1),
)


def on_two(world: World, path: Path) -> list[object]:
    """Every layout unbroken and broken; a run that changes its layout twice; and a whole checkpoint taken up."""
    found: dict[str, object] = {}
    for name in ("shard2", "expert2 shard2 zero3"):
        layout = LAYOUTS[name]
        unbroken = everything(train(world, path / f"{name} calm", config=EVEN, layout=layout))
        break_off(world, path / name, EVEN, layout)
        found[name] = (unbroken, everything(train(world, path / name, config=EVEN, layout=layout)))
    moving = path / "moving"
    train(world, moving, config=replace(EVEN, steps=2), layout=LAYOUTS["expert2"])
    break_off(world, moving, EVEN, LAYOUTS["shard2"])
    moved = everything(train(world, moving, config=EVEN, layout=LAYOUTS["expert2 shard2 zero3"]))
    break_off(world, path / "to one", EVEN, LAYOUTS["expert2 shard2 zero3"])
    taken_up = everything(train(world, path / "whole", config=EVEN, layout=LAYOUTS["shard2"]))
    return world.gather((found, moved, taken_up))


@pytest.mark.ranks
def test_a_layout_goes_on_bit_for_bit_and_another_goes_on_for_it_closely(tmp_path: Path) -> None:
    break_off(ALONE, tmp_path / "whole", EVEN, ParallelConfig())
    assert not is_sharded(list_checkpoints(tmp_path / "whole" / "pretrain")[-1])
    ranks = launch(2, "cpu", on_two, tmp_path)
    for found, _, _ in ranks:
        for unbroken, resumed in found.values():
            require_equal(resumed, unbroken)
    found, moved, taken_up = ranks[0]
    alone = everything(train(ALONE, tmp_path / "alone", config=EVEN))
    to_one = everything(train(ALONE, tmp_path / "to one", config=EVEN))
    for other in (moved, to_one, taken_up, *(resumed for _, resumed in found.values())):
        require_equal(other, alone, tolerance=1e-5)  # the bound: sums in another order
