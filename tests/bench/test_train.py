"""Both sides of the training bench do the same work."""

from collections.abc import Callable
from typing import Any

import pytest

from fathom.bench import train
from fathom.bench.shape import describe_shape, published
from fathom.bench.train import TrainSize
from fathom.config import ModelConfig

SIZE = TrainSize(rows=4, seq_len=16, steps=2)


def test_losses_and_counts_agree(tiny: ModelConfig, play: Callable[..., list[Any]]) -> None:
    pytest.importorskip("transformers")
    with published(tiny) as path:
        ours = play(train.train_fathom, 2, path, SIZE)
        assert ours[0]["loss"] > ours[-1]["loss"]
        theirs = play(train.train_transformers, 2, path, SIZE)
    assert [turn["tokens"] for turn in ours[1:]] == [turn["tokens"] for turn in theirs[1:]] == [128, 128]
    assert ours[0]["loss"] == pytest.approx(theirs[0]["loss"], abs=1e-4)
    assert theirs[0]["experts"] in ("eager", "grouped_mm", "batched_mm")


def test_unequal_losses_are_refused() -> None:
    train.require_same_loss({"a": 8.60001, "b": 8.60005})
    with pytest.raises(RuntimeError, match="differ"):
        train.require_same_loss({"a": 8.6001, "b": 8.6003})


@pytest.mark.ranks
def test_the_bench_alone(tiny: ModelConfig) -> None:
    found = train.main("none", tiny, [SIZE], rounds=2)
    assert (found["bench"], found["peer"], found["model"]) == ("train", "none", describe_shape(tiny))
    (size,) = found["sizes"]
    assert (size["rows"], size["seq_len"], size["steps"]) == (4, 16, 4)
    assert list(size["tokens_per_s"]) == ["fathom, 2 x 1"]
    assert size["tokens_per_s"]["fathom, 2 x 1"] > 0
    assert "ratio" not in size
    assert {"machine", "versions", "load_before"} <= found.keys()
