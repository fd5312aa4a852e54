"""Processes that take turns."""

from pathlib import Path

import pytest

from fathom.bench.shape import published
from fathom.bench.team import Team
from fathom.bench.train import TrainSize, train_fathom
from fathom.config import ModelConfig

SIZE = TrainSize(rows=4, seq_len=8, steps=1)


@pytest.mark.ranks
def test_every_process_hands_in_its_part(tiny: ModelConfig) -> None:
    with published(tiny) as path, Team("fathom", 2, 1, train_fathom, path, SIZE) as team:
        assert team.name == "fathom, 2 x 1"
        first, second = team.ready
        assert first["loss"] == pytest.approx(second["loss"])  # of the whole batch, on both
        seconds, results = team.turn()
        assert seconds > 0
        assert [result["tokens"] for result in results] == [16, 16]


@pytest.mark.ranks
def test_an_error_of_a_process_is_told(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"fathom, 1 x 1: .*is missing; name a directory"):
        Team("fathom", 1, 1, train_fathom, tmp_path, SIZE)
