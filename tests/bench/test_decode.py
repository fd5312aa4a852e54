"""Both sides of the generation bench emit the same tokens."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fathom.bench import decode
from fathom.bench.decode import DecodeOptions, DecodeSize, Place, first_difference
from fathom.bench.shape import MIDDLE, published
from fathom.checkpoint.hub import save_published
from fathom.cli import main
from fathom.config import ModelConfig
from fathom.model import Transformer
from fathom.plan.count import main_parameters
from fathom.presets import SMALL

SIZE = DecodeSize(rows=3, prompt=5, new_tokens=12)
CPU = Place("cpu")


def test_texts_and_counts_agree(tiny: ModelConfig, play: Callable[..., list[Any]]) -> None:
    pytest.importorskip("transformers")
    with published(tiny) as path:
        ours = play(decode.decode_fathom, 1, path, SIZE, CPU)
        theirs = play(decode.decode_transformers, 1, path, SIZE, CPU)
    assert ours[1]["tokens"] == theirs[1]["tokens"] == 36
    assert first_difference(ours[1]["texts"], theirs[1]["texts"]) is None
    assert theirs[0]["cache"] in ("dynamic", "static")


def test_first_difference() -> None:
    assert first_difference([[1, 2], [3, 4]], [[1, 2], [3, 4]]) is None
    assert first_difference([[1, 2], [3, 4], [5, 6]], [[1, 2], [3, 5], [6, 6]]) == {"row": 1, "place": 1, "rows": 2}
    assert first_difference([[1, 2, 3]], [[1, 2]]) == {"row": 0, "place": 2, "rows": 1}


def test_the_first_turn_measures_what_a_step_is_set_beside(tiny: ModelConfig, play: Callable[..., list[Any]]) -> None:
    drafting = replace(tiny, num_nextn_predict_layers=1)
    with published(drafting) as path:
        found = play(decode.decode_fathom, 2, path, SIZE, CPU)[2]
    assert 2.0 <= found["met"] <= 4.0
    assert all(value > 0 for value in found["roof"].values())
    assert 0 <= found["drafts"]["acceptance"] <= 1 <= found["drafts"]["tokens_per_step"]
    assert len(found["step"]) == len(found["cpu"]) == 2


def test_the_shapes_have_the_sizes_of_their_names() -> None:
    millions = [
        round(main_parameters(shape, active=active, embedding=whole) / 1e6, 1)
        for shape, active, whole in (
            (MIDDLE, False, True),
            (MIDDLE, True, True),
            (SMALL, False, True),
            (SMALL, True, False),
        )
    ]
    assert millions == [16.0, 6.4, 816.9, 167.6]


def test_options_are_refused_by_name(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["bench", "train", "--rows", "1"]) == 2
    assert "--rows belongs to fathom bench decode" in capsys.readouterr().err
    assert main(["bench", "decode", "--rows", "0"]) == 2
    assert "rows=(0,)" in capsys.readouterr().err
    assert main(["bench", "decode", "--model", str(tmp_path / "nothing")]) == 2
    assert "name a run, a checkpoint or a shape: 0.7m, 16m, h200" in capsys.readouterr().err


@pytest.mark.ranks
def test_the_bench_alone(tiny: ModelConfig, tmp_path: Path) -> None:
    model = Transformer(tiny)
    model.initialise(torch.Generator().manual_seed(0))
    save_published(model, tmp_path / "model")
    options = DecodeOptions(model=str(tmp_path / "model"), rows=(1, 3), prompt=5, new_tokens=12, rounds=1, device="cpu")
    one, three = decode.main("none", options)["sizes"]
    assert one["texts_equal"] and three["texts_equal"]
    assert set(one["tokens_per_s"]) == set(one["steps"]) == {"fathom, 1 x 1", "fathom, 1 x 2"}
    assert set(three["tokens_per_s"]) == set(three["steps"]) == {"fathom, 2 x 1", "fathom, 1 x 1"}
    assert one["steps"]["fathom, 1 x 1"]["experts_met"] == 2.0
    assert three["steps"]["fathom, 2 x 1"]["rows"] == 2
