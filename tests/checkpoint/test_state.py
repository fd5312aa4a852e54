"""Checkpoints for resuming."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fathom.checkpoint.state import list_checkpoints, load_state, load_weights, save_checkpoint, weights_hash
from fathom.config import ModelConfig, RopeConfig
from fathom.model import Transformer

CONFIG = ModelConfig(vocab_size=16, num_hidden_layers=1)


def random_model(seed: int, config: ModelConfig = CONFIG) -> Transformer:
    model = Transformer(config)
    generator = torch.Generator().manual_seed(seed)
    model.initialise(generator)
    model.mtp[0].block.feed_forward.router.selection_bias.normal_(generator=generator)
    return model


def test_weights_tensors_and_values_come_back(tmp_path: Path) -> None:
    model, moments = random_model(0), {"exp_avg.embedding": torch.randn(16, 64)}
    path = save_checkpoint(tmp_path, 12, model, moments, {"loader": {"epoch": 3}, "loss": 1 / 3}, keep=2)
    other = random_model(1)
    assert weights_hash(other) != weights_hash(model)
    load_weights(path, other)
    assert weights_hash(other) == weights_hash(model)
    tensors, values = load_state(path)
    assert torch.equal(tensors["exp_avg.embedding"], moments["exp_avg.embedding"])
    assert values == {"step": 12, "loader": {"epoch": 3}, "loss": 1 / 3}


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    paths = [save_checkpoint(tmp_path, step, random_model(0), {}, {}, keep=2) for step in (5, 10, 15)]
    assert list_checkpoints(tmp_path) == paths[1:]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_000010", "step_000015"]


def test_a_save_cut_short_is_never_found(tmp_path: Path) -> None:
    whole = save_checkpoint(tmp_path, 5, random_model(0), {}, {}, keep=2)
    (tmp_path / "partial-000010").mkdir()
    (tmp_path / "partial-000010" / "state.json").write_text("{}")
    assert list_checkpoints(tmp_path) == [whole]
    again = save_checkpoint(tmp_path, 10, random_model(0), {}, {}, keep=2)
    assert list_checkpoints(tmp_path) == [whole, again]


def test_weights_of_another_config_are_refused_by_the_field_that_differs(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, 5, random_model(0), {}, {}, keep=2)
    model = random_model(0, replace(CONFIG, rope=RopeConfig(theta=5e5)))
    with pytest.raises(ValueError, match=r"model.rope.theta is 10000.0, not 500000.0"):
        load_weights(path, model)
