from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fathom.bench import speculation
from fathom.bench.shape import SHAPE
from fathom.config import SamplingConfig
from fathom.infer.speaker import Speaker
from fathom.model import Transformer
from fathom.text.tokenizer import Tokenizer


@pytest.fixture
def speaker() -> Speaker:
    model = Transformer(replace(SHAPE, vocab_size=64, num_nextn_predict_layers=1))
    model.initialise(torch.Generator().manual_seed(0))
    tokenizer = Tokenizer.train(["1+1=2"], 1300)
    return Speaker(model, tokenizer, frozenset(), uses_template=False, sampling=SamplingConfig(), name="tiny")


def test_every_batch_is_measured_and_judged(speaker: Speaker, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(speculation, "load_speaker", lambda path, device: speaker)
    found = speculation.main("none", tmp_path, batches=(1, 3), rounds=1, tokens=10)
    assert [size["rows"] for size in found["batches"]] == [1, 3]
    for size in found["batches"]:
        assert set(size["measured"]) == {"1", "2", "3", "auto"} and set(size["predicted"]) == {"1", "2", "3"}
        assert all(speed > 0 for speed in size["measured"].values())
        assert size["plain_tokens_per_s"] > 0
        assert size["predicted"]["3"] < 4
    assert found["holds"] == all(size["holds"] for size in found["batches"])


@pytest.mark.parametrize(
    ("measured", "predicted", "auto", "short", "holds"),
    [
        ({1: 1.15, 2: 1.0, 3: 0.9}, {1: 1.2, 2: 1.1, 3: 1.0}, 0.98, [], True),  # 0.15 of 0.2, the others need not pay
        ({1: 1.13, 2: 1.0, 3: 0.9}, {1: 1.2, 2: 1.1, 3: 1.0}, 1.1, [1], False),
        (
            {1: 0.7, 2: 0.6, 3: 0.5},
            {1: 1.1, 2: 1.0, 3: 0.9},
            0.96,
            [],
            False,
        ),  # lost by switching on where it is no use
        ({1: 1.3, 2: 1.4, 3: 1.2}, {1: 1.4, 2: 1.5, 3: 1.6}, 1.4, [3], False),
    ],
)
def test_the_verdict(
    measured: dict[int, float], predicted: dict[int, float], auto: float, short: list[int], holds: bool
) -> None:
    verdict = speculation._judge({**measured, "auto": auto}, predicted)
    assert (verdict["short_of_prediction"], verdict["holds"]) == (short, holds)
    assert verdict["auto_lost"] == pytest.approx(max(0.0, 1 - auto))


def test_what_cannot_be_measured_is_refused() -> None:
    with pytest.raises(ValueError, match="needs a model trained with MTP"):
        speculation.main("none")
    with pytest.raises(ValueError, match="--peer trl has no place"):
        speculation.main("trl", Path("x"))
