"""Two processes against one, and what becomes of a process that fails."""

import os
import signal
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from fathom.config import (
    AttentionConfig,
    GRPOConfig,
    ModelConfig,
    MoEConfig,
    ObjectiveConfig,
    OptimizerConfig,
    SamplingConfig,
)
from fathom.config.objectives import named_objective
from fathom.model import Transformer
from fathom.parallel.world import World, choose_device, launch, processes_here
from fathom.rl.batch import collate, in_micro_batches
from fathom.rl.critic import CriticState
from fathom.rl.loop import update, update_critic, update_once, whitened
from fathom.rl.losses import take_notes
from fathom.rl.reference import Reference
from fathom.rl.reward import Reward
from fathom.rl.rollout import Episode, Rollout
from fathom.runs import Run
from fathom.tasks import Problem
from fathom.text.packing import Batch
from fathom.train.loop import Place
from fathom.train.loss import Denominators, language_losses
from fathom.train.step import Rates, TrainState, train_step

CPU = torch.device("cpu")
ALONE = World(0, 1, CPU)
MODEL = ModelConfig(
    vocab_size=31,
    hidden_size=16,
    num_hidden_layers=1,
    initializer_range=0.2,
    attention=AttentionConfig(
        num_attention_heads=2,
        num_key_value_heads=2,
        kv_lora_rank=8,
        qk_nope_head_dim=4,
        qk_rope_head_dim=4,
        v_head_dim=4,
    ),
    moe=MoEConfig(moe_intermediate_size=8, bias_update_speed=0.01),
)
STEPS, ROWS = 3, 6
OPTIMIZER = OptimizerConfig(lr=1e-3, weight_decay=0.1, ema_decay=0.5)
RATES = Rates(lr=1e-3, clip_norm=0.5, bias_speed=0.01, ema_decay=0.5)


def build() -> Transformer:
    model = Transformer(MODEL)
    model.initialise(torch.Generator().manual_seed(0))
    return model


def batch_of(step: int) -> Batch:
    """Rows with prompts and padding, so that the processes' halves hold different numbers of tokens."""
    rng = np.random.default_rng(step)
    tokens = rng.integers(1, 31, (ROWS, 10))
    lengths, places = rng.integers(3, 10, (ROWS, 1)), np.arange(9)
    return Batch(
        tokens=tokens[:, :-1],
        targets=tokens[:, 1:],
        weights=((places < lengths) & (places > 0)).astype(np.float32),
        positions=np.tile(places, (ROWS, 1)),
        segments=np.where(places < lengths, 0, -1),
    )


def weights_of(state: TrainState) -> dict[str, Tensor]:
    averages = {f"ema.{n}": copy for n, copy in enumerate(state.copies.get("ema", []))}
    return {**state.model.state_dict(), **averages}


def pretrain(world: World) -> dict[str, object]:
    """A few steps on this process's share of the rows."""
    state = TrainState.start(build(), OPTIMIZER)
    numbers: list[object] = []
    for step in range(STEPS):
        share = ROWS // world.size
        micro_batches = [batch_of(step).rows(world.rank * share, (world.rank + 1) * share)]
        denominators = Denominators.of(micro_batches, 1, world)
        losses = partial(_language_losses, state.model, denominators)
        report = train_step(state, micro_batches, losses, RATES, world)
        numbers.append((report.loads.tolist(), report.parts, report.grad_norm))
    return {"weights": weights_of(state), "numbers": numbers, "rank": world.rank}


def _language_losses(model: Transformer, denominators: Denominators, batch: Batch):
    return language_losses(model, batch, denominators, 0.3, CPU)


def episodes_of(step: int) -> list[Episode]:
    """Four groups of three answers of different lengths, one of them ungraded."""
    rng = np.random.default_rng(step)
    rows: list[Episode] = []
    for row in range(12):
        completion = rng.integers(1, 31, int(rng.integers(1, 8))).tolist()
        total = None if row == 7 else float(rng.integers(0, 3))
        reward = Reward(total, total and float(total > 1), 1.0, 1.0)
        problem = Problem("1,2:3", "0", (1, 2), 3)
        rows.append(
            Episode(problem, row // 3, [1, 3, row + 1, 4], completion, [-1.0] * len(completion), False, reward, 0)
        )
    return rows


def reinforce(world: World, path: Path) -> dict[str, object]:
    """A few updates on this process's share of the groups; in the second step one process has none."""
    objective = ObjectiveConfig(kl_beta=0.1, reference_reset_steps=2)
    sampling = SamplingConfig(max_tokens=8)
    config = GRPOConfig(
        steps=STEPS, prompts=4, group=3, micro_batch_rows=4, objective=objective, sampling=sampling, optimizer=OPTIMIZER
    )
    state = TrainState.start(build(), OPTIMIZER)
    reference = Reference(state, config)
    numbers: list[object] = []
    for step in range(STEPS):
        reference.refresh(state)
        mine = [e for e in episodes_of(step) if step == 1 or e.group % world.size == world.rank]
        if step == 1 and world.rank == 1:
            mine = []
        metrics = update(Place(Run(path), "grpo", world), config, state, reference, Rollout(mine, mine, 0, 0))
        numbers.append({name: metrics[name] for name in ("loss", "kl", "entropy", "grad_norm", "trained_tokens")})
    return {"weights": weights_of(state), "numbers": numbers}


def compare_with_a_critic(world: World, path: Path) -> dict[str, object]:
    """PPO: advantages whitened over all processes, a critic's steps beside the policy's."""
    config = GRPOConfig(
        steps=STEPS,
        prompts=4,
        group=3,
        updates=2,
        micro_batch_rows=4,
        objective=named_objective("ppo"),
        sampling=SamplingConfig(max_tokens=8),
        optimizer=OPTIMIZER,
    )
    state = TrainState.start(build(), OPTIMIZER)
    critic = CriticState.start(state, config.critic, world)
    place = Place(Run(path), "grpo", world)
    mine = [e for e in episodes_of(0) if e.group % world.size == world.rank]
    notes = [
        take_notes(state.model, None, critic.model, micro, config, place)
        for micro in in_micro_batches(collate(mine, config), np.arange(len(mine)), 4)
    ]
    (micros,) = whitened([notes], config, place)
    rates = Rates(lr=1e-3, clip_norm=0.0, bias_speed=0.0)
    report = update_once(place, config, state, Reference(state, config), micros, rates, [])
    values = update_critic(place, config, critic, micros, rates)
    weights = weights_of(state) | {f"critic.{name}": t for name, t in critic.model.state_dict().items()}
    per_token = {name: value / report.parts["tokens"] for name, value in report.parts.items() if name != "loss"}
    return {"weights": weights, "numbers": [report.parts["loss"], per_token, values.parts, report.grad_norm]}


def collectives(world: World) -> dict[str, object]:
    tensors = [torch.full((2, 2), float(world.rank + 1)), torch.tensor([1, 2 + world.rank])]
    world.sum(tensors)
    world.barrier()
    return {
        "sum": [tensor.tolist() for tensor in tensors],
        "dtype": tensors[1].dtype,
        "numbers": world.sum_numbers(0.5, world.rank, 2**40),
        "gathered": world.gather({"rank": world.rank, "main": world.is_main}),
    }


def everything(world: World, path: Path) -> list[object]:
    """What every process has in the end, gathered."""
    runs = (pretrain(world), reinforce(world, path), compare_with_a_critic(world, path))
    return world.gather((*runs, collectives(world)))


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    """The results of two processes."""
    return launch(2, "cpu", everything, tmp_path_factory.mktemp("run"))


@pytest.mark.ranks
def test_two_processes_train_the_weights_of_one(pair: list[object], tmp_path: Path) -> None:
    alone_runs = (pretrain(ALONE), reinforce(ALONE, tmp_path), compare_with_a_critic(ALONE, tmp_path))
    for number, alone in enumerate(alone_runs):
        first, second = (rank[number] for rank in pair)
        for name, tensor in alone["weights"].items():
            assert torch.equal(first["weights"][name], second["weights"][name]), name
            torch.testing.assert_close(first["weights"][name], tensor, rtol=0, atol=1e-5)
        compare(first["numbers"], alone["numbers"])
    assert [rank[0]["rank"] for rank in pair] == [0, 1]


def compare(found: object, wanted: object) -> None:
    """Counts equal, and losses to 1e-5."""
    match wanted:
        case dict():
            assert found.keys() == wanted.keys()
            for name in wanted:
                compare(found[name], wanted[name])
        case list() | tuple():
            for one, other in zip(found, wanted, strict=True):
                compare(one, other)
        case int():
            assert found == wanted  # loads are counted once, over both processes
        case _:
            assert found == pytest.approx(wanted, abs=1e-5)


@pytest.mark.ranks
def test_what_processes_exchange(pair: list[object]) -> None:
    for rank in pair:
        assert rank[3] == {
            "sum": [[[3.0, 3.0], [3.0, 3.0]], [2, 5]],
            "dtype": torch.int64,
            "numbers": (1.0, 1.0, 2.0**41),
            "gathered": [{"rank": 0, "main": True}, {"rank": 1, "main": False}],
        }


def test_alone_everything_is_what_it_was() -> None:
    tensor = torch.ones(2)
    ALONE.sum([tensor])
    ALONE.barrier()
    assert tensor.tolist() == [1.0, 1.0]
    assert ALONE.sum_numbers(1.5, 2) == (1.5, 2)
    assert ALONE.gather("x") == ["x"]
    assert launch(1, "cpu", lambda world, more: (world.rank, world.size, more), "y") == (0, 1, "y")


def test_several_gpus_are_taken_only_where_they_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    assert (processes_here(cuda, 2, 1), processes_here(cuda, 2, 4), processes_here(cpu, 2, 1)) == (1, 4, 2)
    with pytest.raises(ValueError, match=r"gpu_workers=5, but torch sees 4 here; ask for at most 4"):
        processes_here(cuda, 2, 5)
    with pytest.raises(ValueError, match=r"gpu_workers=2 .* computes on the CPU; leave gpu_workers at 1"):
        processes_here(cpu, 2, 2)


def test_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == choose_device("cpu") == CPU
    with pytest.raises(ValueError, match="--device cpu"):
        choose_device("cuda")


class Odd(Exception):
    """An error of a kind that the caller knows."""


def fail_while_others_wait(world: World) -> None:
    if world.rank == 1:
        raise Odd("rank 1 has had enough")
    world.barrier()


def fail_after_all_is_said(world: World) -> str:
    world.barrier()
    if world.rank == 1:
        time.sleep(0.2)
        raise Odd("rank 1 has had enough")
    return "the first process ended well"


def vanish(world: World) -> None:
    if world.rank == 1:
        os._exit(9)
    world.barrier()


def fail_in_the_first(world: World) -> None:
    if world.rank == 0:
        raise Odd("rank 0 has had enough")
    world.barrier()


def fail_at_the_end_of_a_chain(world: World) -> None:
    if world.rank == 2:
        raise Odd("rank 2 has had enough")
    dist.recv(torch.zeros(1), src=world.rank + 1)  # rank 1 loses rank 2, and thereby rank 0 loses rank 1


@pytest.mark.ranks
def test_the_first_of_several_failures_is_raised() -> None:
    with pytest.raises(Odd, match="rank 2 has had enough"):
        launch(3, "cpu", fail_at_the_end_of_a_chain)
    assert children() == []


@pytest.mark.ranks
@pytest.mark.parametrize(
    ("work", "error", "words"),
    [
        (fail_while_others_wait, Odd, "rank 1 has had enough"),
        (fail_after_all_is_said, Odd, "rank 1 has had enough"),
        (vanish, RuntimeError, "exit code 9"),
        (fail_in_the_first, Odd, "rank 0 has had enough"),
    ],
)
def test_what_ends_one_process_is_raised_in_the_caller_within_seconds(
    work: Callable[[World], object], error: type[Exception], words: str
) -> None:
    started = time.monotonic()
    with pytest.raises(error, match=words):
        launch(2, "cpu", work)
    assert time.monotonic() - started < 20
    assert children() == []


class Unloadable:
    """Something that no other process can read."""

    def __reduce__(self) -> tuple[Callable[[], None], tuple[()]]:
        return _refuse_to_load, ()


def _refuse_to_load() -> None:
    raise ImportError("no such thing here")


@pytest.mark.ranks
def test_a_process_that_cannot_start_is_no_reason_to_wait_for_it(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RuntimeError, match="could not start"):
        launch(2, "cpu", _ignore, Unloadable())
    assert "no such thing here" in capfd.readouterr().err
    assert children() == []


def _ignore(world: World, thing: object) -> None: ...


def wait_for_ever(world: World) -> None:
    if world.is_main:
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
    while True:
        time.sleep(0.01)
        world.barrier()


@pytest.mark.ranks
def test_ctrl_c_ends_all_processes() -> None:
    with pytest.raises(KeyboardInterrupt):
        launch(2, "cpu", wait_for_ever)
    assert children() == []


def children() -> list[int]:
    """Processes that this one started and that still run, the keeper of shared memory apart."""
    listed = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
    found: list[int] = []
    for pid in map(int, listed):
        command = Path(f"/proc/{pid}/cmdline").read_text()
        if command and "resource_tracker" not in command:
            found.append(pid)
    return found
