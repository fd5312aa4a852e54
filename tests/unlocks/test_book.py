"""A finished seed is not run again, nothing begins that would end too late, and cards share checkpoints."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from fathom.config import ModelConfig
from fathom.unlocks.book import Book
from fathom.unlocks.experiment import Claim, Context, Experiment, Figures, OutOfTime, Result, difference
from fathom.unlocks.verdict import above, over_seeds


def book(tmp_path: Path, seconds: float = 60.0) -> Book:
    return Book(Context(torch.device("cpu"), "toy", tmp_path, time.monotonic() + seconds))


def experiment(measure: Callable[[Context, int], Figures], minutes: float = 0.0, width: int = 8) -> Experiment:
    def conclude(seeds: Sequence[Figures]) -> Result:
        mean = over_seeds([seed["value"] for seed in seeds])
        return Result(measured=mean.text(), verdict=above(mean), because="b", headings=("seed",), rows=[("1",)])

    return Experiment(
        name="try",
        title="A try",
        claim=Claim(says="s", source="s", published="p", conditions="c"),
        variants=lambda size: {"baseline": {"width": width}, "wide": {"width": 2 * width}},
        changes=frozenset({"width"}),
        minutes={"toy": minutes, "cpu": minutes, "gpu": minutes},
        seeds=3,
        measure=measure,
        conclude=conclude,
        shows="s",
        does_not_show="d",
    )


def test_an_interrupted_experiment_goes_on(tmp_path: Path) -> None:
    ran: list[int] = []

    def measure(context: Context, seed: int) -> Figures:
        ran.append(seed)
        if ran == [0, 1]:
            raise KeyboardInterrupt
        return {"value": 1.0 + seed}

    with pytest.raises(KeyboardInterrupt):
        book(tmp_path).measure([experiment(measure)])
    assert book(tmp_path).state(experiment(measure)) == "1 of 3 seeds"
    assert book(tmp_path).measure([experiment(measure)]) == []
    assert book(tmp_path).measure([experiment(measure)]) == []
    assert ran == [0, 1, 1, 2]
    result = book(tmp_path).result(experiment(measure))
    assert result is not None and result.measured == over_seeds([1.0, 2.0, 3.0]).text()


def test_seeds_of_another_config_do_not_count(tmp_path: Path) -> None:
    book(tmp_path).measure([experiment(lambda context, seed: {"value": 1.0})])
    assert book(tmp_path).state(experiment(lambda context, seed: {"value": 2.0}, width=16)) == "not run"


def test_what_would_end_too_late_does_not_begin(tmp_path: Path) -> None:
    def never(context: Context, seed: int) -> Figures:
        raise AssertionError("begun")

    assert book(tmp_path, seconds=50).measure([experiment(never, minutes=3)]) == ["try"]
    assert book(tmp_path, seconds=-1).measure([experiment(never)]) == ["try"]


def test_a_seed_that_overruns_is_stopped_and_not_booked(tmp_path: Path) -> None:
    def slow(context: Context, seed: int) -> Figures:
        while True:
            context.check_time()

    started = time.monotonic()
    assert book(tmp_path, seconds=0.2).measure([experiment(slow)]) == ["try"]
    assert time.monotonic() - started < 5
    assert book(tmp_path).state(experiment(slow)) == "not run"


def test_checkpoints_are_made_once_and_whole(tmp_path: Path) -> None:
    context, made = book(tmp_path).context, list[str]()

    def fail(path: Path) -> None:
        (path / "half").touch()
        raise OutOfTime

    def make(path: Path) -> None:
        made.append(path.name)
        (path / "weights").write_text("w")

    with pytest.raises(OutOfTime):
        context.checkpoint({"model": ModelConfig(), "seed": 0}, fail)
    first = context.checkpoint({"model": ModelConfig(), "seed": 0}, make)
    assert context.checkpoint({"seed": 0, "model": ModelConfig()}, make) == first
    assert context.checkpoint({"model": ModelConfig(), "seed": 1}, make) != first
    assert len(made) == 2 and sorted(file.name for file in first.iterdir()) == ["made_from.json", "weights"]


def test_a_difference_names_fields() -> None:
    assert difference(ModelConfig(), ModelConfig(hidden_size=32)) == {"hidden_size": (ModelConfig().hidden_size, 32)}
    assert difference({"a": {"b": 1}}, {"a": {"b": 1, "c": 2}}) == {"a.c": (None, 2)}
