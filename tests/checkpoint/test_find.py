"""Which checkpoint a path means."""

from pathlib import Path

import pytest

from fathom.checkpoint.find import find_checkpoint
from fathom.checkpoint.state import save_checkpoint
from fathom.config import ModelConfig
from fathom.model import Transformer

MODEL = Transformer(ModelConfig(vocab_size=16, num_hidden_layers=1, num_nextn_predict_layers=0))


def save(run: Path, stage: str, step: int) -> Path:
    return save_checkpoint(run / stage, step, MODEL, {}, {}, keep=5)


def test_a_run_means_the_newest_checkpoint_of_its_last_stage(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")  # the run's own config
    save(tmp_path, "pretrain", 900)
    assert find_checkpoint(tmp_path) == tmp_path / "pretrain" / "step_000900"
    save(tmp_path, "sft", 50)
    newest = save(tmp_path, "sft", 100)
    assert find_checkpoint(tmp_path) == newest
    first = save(tmp_path, "grpo", 5)
    assert find_checkpoint(tmp_path) == first
    assert find_checkpoint(tmp_path / "sft") == newest
    assert find_checkpoint(tmp_path / "pretrain" / "step_000900") == tmp_path / "pretrain" / "step_000900"


def test_a_half_written_checkpoint_is_passed_over_and_refused(tmp_path: Path) -> None:
    whole = save(tmp_path, "sft", 50)
    half = save(tmp_path, "sft", 100)
    (half / "state.json").unlink()
    assert find_checkpoint(tmp_path) == whole
    with pytest.raises(ValueError, match="step_000100 was not written to its end"):
        find_checkpoint(half)


def test_a_published_directory_and_a_file_mean_themselves(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert find_checkpoint(tmp_path) == tmp_path
    (tmp_path / "model.gguf").write_bytes(b"")
    assert find_checkpoint(tmp_path / "model.gguf") == tmp_path / "model.gguf"


def test_nothing_to_find(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no checkpoint; train first"):
        find_checkpoint(tmp_path)
    with pytest.raises(ValueError, match="does not exist"):
        find_checkpoint(tmp_path / "absent")
