"""One stage: done once, continued after an interruption, begun again when its inputs change."""

from pathlib import Path
from typing import Any

import pytest
import torch

from fathom.chain.stage import Record, file_hash, fingerprint, peak_memory_gib, run_stage
from fathom.config import Config, OptimizerConfig, TrainConfig
from fathom.parallel.world import World
from fathom.runs import Run

WORLD = World(0, 1, torch.device("cpu"))
CONFIG = Config(seed=7, dollars_per_hour=3600.0)


class Stage:
    """A stage that leaves a checkpoint file a step and counts how often it is called."""

    def __init__(self, path: Path, name: str = "sft") -> None:
        self.run, self.name, self.calls = Run(path), name, 0
        self.directory = self.run.checkpoint_dir(name)

    def __call__(self, fails_after: int = 99, output: str = "step_3", over: bool = True, **inputs: Any) -> Record:
        def work() -> Record:
            self.calls += 1
            first = len(list(self.directory.glob("step_*")))
            for step in range(first + 1, 4):
                if step > fails_after:
                    raise RuntimeError("interrupted")
                (self.directory / f"step_{step}").write_text(str(inputs))
                self.run.append_metrics(self.name, step, seconds=10.0)
            return {"steps": 3 - first, "inputs": inputs}

        return run_stage(self.run, WORLD, CONFIG, self.name, inputs, work, self.directory / output, start_over=over)


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


def test_a_line_is_booked_and_an_equal_stage_skipped(stage: Stage) -> None:
    record = stage(lr=1)
    assert stage(lr=1) == stage.run.read_ledger("sft")[0]
    assert stage.calls == 1
    assert record["steps"] == 3 and record["stage"] == "sft" and record["seed"] == 7 and record["processes"] == 1
    assert record["seconds"] > 0 and record["dollars"] == pytest.approx(record["seconds"], abs=1e-3)
    (line,) = stage.run.read_ledger()
    assert record.items() <= line.items()
    assert {"commit", "machine", "peak_memory_gib"} <= line.keys()


def test_other_inputs_begin_again_without_what_the_old_ones_left(stage: Stage) -> None:
    stage.run.append_metrics("pretrain", 1)
    stage(lr=1)
    (stage.directory / "step_9").write_text("stale")
    assert stage(lr=2)["steps"] == 3
    assert sorted(path.name for path in stage.directory.iterdir()) == ["inputs", "step_1", "step_2", "step_3"]
    assert (stage.directory / "step_1").read_text() == "{'lr': 2}"
    assert [line["step"] for line in stage.run.read_metrics("sft")] == [1, 2, 3]
    assert len(stage.run.read_metrics("pretrain")) == 1  # other stages keep theirs
    assert [line["inputs"] for line in stage.run.read_ledger("sft")] == [{"lr": 1}, {"lr": 2}]


def test_an_interrupted_stage_goes_on_and_books_all_the_time_it_took(stage: Stage) -> None:
    with pytest.raises(RuntimeError, match="interrupted"):
        stage(fails_after=2, lr=1)
    assert stage.run.read_ledger() == []
    record = stage(lr=1)
    assert record["steps"] == 1
    assert 20 <= record["seconds"] < 21  # two steps of 10 seconds before the interruption


def test_an_interrupted_stage_with_other_inputs_begins_again(stage: Stage) -> None:
    with pytest.raises(RuntimeError):
        stage(fails_after=2, lr=1)
    record = stage(lr=2)
    assert record["steps"] == 3
    assert record["seconds"] < 1


def test_going_back_to_earlier_inputs_does_not_take_the_later_result_for_theirs(stage: Stage) -> None:
    stage(lr=1)
    stage(lr=2)
    assert stage(lr=1)["steps"] == 3
    assert stage.calls == 3
    assert (stage.directory / "step_3").read_text() == "{'lr': 1}"
    assert stage.run.read_ledger("sft")[-1]["inputs"] == {"lr": 1}


def test_a_try_at_other_inputs_that_came_to_nothing_spoils_the_result(stage: Stage) -> None:
    """Its last checkpoint may be there already, and it is not that of the booked line."""
    stage(lr=1)
    with pytest.raises(RuntimeError):
        stage(fails_after=2, lr=2)
    (stage.directory / "step_3").write_text("of the second try")
    assert stage(lr=1)["steps"] == 3
    assert (stage.directory / "step_3").read_text() == "{'lr': 1}"


def test_a_result_that_was_deleted_is_made_again(stage: Stage) -> None:
    stage(lr=1)
    (stage.directory / "step_3").unlink()
    assert stage(lr=1)["steps"] == 1
    assert stage.calls == 2


def test_a_directory_half_deleted_is_not_gone_on_with(stage: Stage) -> None:
    with pytest.raises(RuntimeError):
        stage(fails_after=2, lr=1)
    (stage.directory / "inputs").unlink()  # what goes first when a stage starts over
    assert stage(lr=1)["steps"] == 3


def test_a_stage_asked_for_alone_is_refused_with_other_inputs_and_kept(stage: Stage) -> None:
    with pytest.raises(RuntimeError):
        stage(fails_after=2, lr=1)
    with pytest.raises(ValueError, match=r"sft with other settings.*--out"):
        stage(over=False, lr=2)
    assert stage(over=False, lr=1)["steps"] == 1


def test_stages_do_not_touch_each_other(tmp_path: Path) -> None:
    sft, grpo = Stage(tmp_path), Stage(tmp_path, "grpo")
    sft(lr=1)
    grpo(lr=1)
    sft(lr=2)
    grpo(lr=1)
    assert (sft.calls, grpo.calls) == (2, 1)


def test_fingerprints_tell_values_apart_and_do_not_depend_on_order() -> None:
    base = TrainConfig()
    assert fingerprint({"train": base, "seed": 1}) == fingerprint({"seed": 1, "train": TrainConfig()})
    others = [
        {"train": TrainConfig(optimizer=OptimizerConfig(beta1=0.91)), "seed": 1},
        {"train": base, "seed": 2},
        {"train": base, "seed": "1"},
        {"train": base, "seed": None},
    ]
    assert len({fingerprint(value) for value in [{"train": base, "seed": 1}, *others]}) == 5
    with pytest.raises(TypeError, match="fingerprint of object"):
        fingerprint({"x": object()})


def test_the_hash_of_files_sees_names_and_contents_and_no_order(tmp_path: Path) -> None:
    for name, content in (("a", b"1"), ("b", b"2"), ("c", b"1")):
        (tmp_path / name).write_bytes(content)
    a, b, c = (tmp_path / name for name in "abc")
    assert file_hash(a, b) == file_hash(b, a)
    assert len({file_hash(a), file_hash(b), file_hash(c), file_hash(a, b), file_hash()}) == 5


def test_peak_memory_is_what_a_process_with_torch_needs() -> None:
    assert 0.1 < peak_memory_gib(torch.device("cpu")) < 100
