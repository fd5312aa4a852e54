"""Training in FP8: codes follow the weights, the loss falls as it does without, and a run resumes exactly."""

import copy
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fathom.config import Config, TrainConfig
from fathom.kernels.quant import quantize_weight
from fathom.model import Transformer
from fathom.model.precision import fp8_layers, use_fp8
from fathom.parallel.world import World
from fathom.presets import preset
from fathom.runs import Run
from fathom.text.packing import Batch
from fathom.train.loop import Place, train_language

MODEL = replace(preset("laptop").model, num_hidden_layers=2)
CONFIG = TrainConfig(
    steps=6, batch_rows=4, micro_batch_rows=2, seq_len=16, save_every=3, validate_every=0, precision="fp8"
)


def build() -> Transformer:
    model = Transformer(MODEL)
    model.initialise(torch.Generator().manual_seed(0))
    return model


def batch_of(step: int, rows: int) -> Batch:
    """The same few rows at every step, so that the loss must fall."""
    tokens = np.random.default_rng(0).integers(0, MODEL.vocab_size, (rows, 17))
    places = np.broadcast_to(np.arange(16), (rows, 16))
    return Batch(tokens[:, :-1], tokens[:, 1:], np.ones((rows, 16), np.float32), places, np.zeros((rows, 16), np.int64))


def place(path: Path) -> Place:
    return Place(Run(path), "pretrain", World(0, 1, torch.device("cpu")))


def losses(path: Path, config: TrainConfig) -> tuple[list[float], Transformer]:
    model = build()
    train_language(place(path), config, model, batch_of)
    return [line["loss_main"] for line in Run(path).read_metrics("pretrain")], model


def test_the_loss_falls_as_it_does_without_fp8(tmp_path: Path) -> None:
    low, _ = losses(tmp_path / "low", CONFIG)
    plain, _ = losses(tmp_path / "plain", replace(CONFIG, precision="plain"))
    assert low != plain
    assert low[-1] < low[0] - 0.2
    assert max(abs(a - b) / b for a, b in zip(low, plain, strict=True)) < 0.01


def test_codes_follow_the_weights(tmp_path: Path) -> None:
    _, model = losses(tmp_path, CONFIG)
    experts = model.layers[-1].feed_forward
    found = experts.fp8.codes(experts.gate_up)
    assert torch.equal(found.codes.float(), quantize_weight(experts.gate_up.detach()).codes.float())


def test_a_resumed_run_is_an_unbroken_one(tmp_path: Path) -> None:
    whole, model = losses(tmp_path / "whole", CONFIG)
    seen: list[int] = []

    def stop(step: int, metrics: dict[str, object]) -> None:
        seen.append(step)
        if step == 4:
            raise KeyboardInterrupt

    broken = tmp_path / "broken"
    with suppress(KeyboardInterrupt):
        train_language(replace(place(broken), notify=stop), CONFIG, build(), batch_of)
    again, resumed = losses(broken, CONFIG)
    assert seen[-1] == 4 and again == whole
    for ours, theirs in zip(model.state_dict().values(), resumed.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_copy_of_a_model_keeps_its_own_codes() -> None:
    model = build()
    use_fp8(model)
    tokens = torch.zeros(1, 4, dtype=torch.int64)
    before = model(tokens)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(2)
    assert torch.equal(model(tokens), before) and not torch.equal(other(tokens), before)


def test_the_precision_is_a_field_of_the_stage() -> None:
    assert Config().pretrain.precision == "plain"
    model = build()
    assert not list(fp8_layers(model))


def test_other_precisions_are_refused() -> None:
    with pytest.raises(ValueError, match="precision='int8' is unknown; choose one of plain, fp8"):
        TrainConfig(precision="int8")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"train.fp8_least_cosine=1.5 lies outside \[0, 1\]"):
        TrainConfig(fp8_least_cosine=1.5)
