"""Where a step's time goes: spans by hand, and two processes of which one is slow."""

import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

from fathom.config import Config, ModelConfig, ParallelConfig, TrainConfig
from fathom.model import Transformer
from fathom.parallel.world import World, launch
from fathom.report.page import write
from fathom.runs import Record, Run
from fathom.text.packing import Batch
from fathom.train.loop import Place, train_language
from fathom.train.watch import StepWatch, uncovered

LAYOUT = ParallelConfig(breakdown_every=2, profile_steps="2:4", balance_devices=2)
MODEL = ModelConfig(vocab_size=32, hidden_size=16, num_hidden_layers=1, intermediate_size=24)
SLOW = 0.5  # seconds that the first process keeps the other waiting


def test_what_is_not_covered_by_hand() -> None:
    spans = np.array([[0.0, 4.0], [3.0, 6.0], [10.0, 12.0]])
    assert uncovered(spans, np.zeros((0, 2))) == 8.0
    assert uncovered(spans, np.array([[1.0, 2.0], [5.0, 11.0]])) == 5.0
    assert uncovered(np.zeros((0, 2)), spans) == 0.0


def test_what_is_not_covered_by_counting_moments() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        begins, lengths = rng.integers(0, 50, (2, 6)), rng.integers(0, 20, (2, 6))
        spans, by = np.stack((begins, begins + lengths), axis=2).astype(float)
        moments = np.arange(80) + 0.5

        def within(spans: np.ndarray, moments: np.ndarray = moments) -> np.ndarray:
            return ((moments[:, None] > spans[:, 0]) & (moments[:, None] < spans[:, 1])).any(1)

        assert uncovered(spans, by) == (within(spans) & ~within(by)).sum()


def steps(world: World, directory: Path) -> list[object]:
    """Four steps of products and a sum, watched in the second; then a stage that waits for the other."""
    watch = StepWatch(world, directory)
    found: list[object] = []
    for step in range(6):
        watch.begin(step)
        time.sleep(0.05)
        watch.fetched()
        x = torch.ones(64, 64)
        for _ in range(20):
            x = x @ x / 64
        arrived = directory / f"arrived_{step}"
        if world.rank == 0:
            await_file(arrived)  # however slow the machine is, the other one waits first
            time.sleep(SLOW)
        else:
            arrived.touch()
        if step < 4:
            dist.all_reduce(x)
        elif world.rank == 0:
            dist.send(x, 1)
        else:
            dist.recv(x, 0)
        found.append(watch.end(step))
    return found


def await_file(path: Path, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not come"
        time.sleep(0.01)


def watch_all(world: World, directory: Path) -> tuple[list[object], list[Record]]:
    """The watched steps, and the lines of a training that was asked to look as well."""
    run = Run(directory / "run")
    if world.is_main:
        run.write_config(Config(model=MODEL))
    rng = np.random.default_rng(world.rank)
    tokens = rng.integers(1, 32, (2, 9))
    places = np.tile(np.arange(8), (2, 1))
    batch = Batch(tokens[:, :-1], tokens[:, 1:], np.ones((2, 8), np.float32), places, np.zeros((2, 8), np.int64))
    found = steps(world, directory)
    train = TrainConfig(steps=6, batch_rows=4, micro_batch_rows=2, seq_len=8, save_every=2, validate_every=0)
    model = Transformer(MODEL)
    model.initialise(torch.Generator().manual_seed(0))
    train_language(Place(run, "pretrain", world), train, model, lambda step, rows: batch)
    return found, list(run.read_metrics("pretrain"))


@pytest.mark.ranks
def test_a_slow_process_shows_as_the_others_wait(tmp_path: Path) -> None:
    found, lines = launch(2, "cpu", watch_all, tmp_path, layout=LAYOUT)
    assert [list(step) for step in found] == [[], ["breakdown"], [], [], [], ["breakdown"]]
    for step, waits in ((1, "communication"), (5, "bubble")):
        slow, other = found[step]["breakdown"]
        assert slow["compute"] > SLOW
        assert other[waits] > 0.6 * SLOW
        assert slow[waits] < other[waits]
        for parts in (slow, other):
            assert list(parts) == ["compute", "communication", "bubble", "data"]
            assert parts["data"] >= 0.05
            assert min(parts.values()) >= 0
    for rank in range(2):
        trace = json.loads((tmp_path / f"steps_2_4_rank_{rank}.json").read_text())
        names = [event.get("name") for event in trace["traceEvents"]]
        assert names.count("fathom::step") == 2
        assert names.count("aten::mm") == 40
    assert [line["step"] for line in lines if "breakdown" in line] == [2, 6]
    assert [line["step"] for line in lines if "placement" in line] == [4, 6]
    assert {len(line["breakdown"]) for line in lines if "breakdown" in line} == {2}
    assert {line["placement"]["devices"] for line in lines if "placement" in line} == {2}
    assert len(list((tmp_path / "run" / "traces" / "pretrain").glob("steps_2_4_rank_?.json"))) == 2
    page = write(Run(tmp_path / "run")).read_text()
    assert "Where a step of pretraining goes" in page
    assert "Experts in equal runs over 2 devices" in page


@pytest.mark.parametrize("given", ["7", "5:5", "-1:3", "a:b", "1:2:3"])
def test_steps_to_trace_are_checked(given: str) -> None:
    with pytest.raises(ValueError, match=r"parallel\.profile_steps"):
        ParallelConfig(profile_steps=given)
