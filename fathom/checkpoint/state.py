"""Checkpoints for resuming: weights, optimizer, loader and counters, whole or not at all."""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fathom.checkpoint.hub import load_published, save_published
from fathom.model import Transformer


def checkpoint_path(stage_dir: Path, step: int) -> Path:
    """Where the checkpoint behind `step` finished steps lies."""
    return stage_dir / f"step_{step:06d}"


def save_checkpoint(
    stage_dir: Path, step: int, model: Transformer, tensors: dict[str, Tensor], state: dict[str, Any], keep: int
) -> Path:
    """Write a checkpoint beside its final name and move it there: a half-written one is never found.

    `tensors` hold what resuming needs beyond the weights (optimizer, EMA), `state` plain values. Older
    checkpoints beyond `keep` are deleted afterwards.
    """
    final = checkpoint_path(stage_dir, step)
    partial = stage_dir / f"partial-{step:06d}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_published(model, partial)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial / "optimizer.safetensors")
    (partial / "state.json").write_text(json.dumps({"step": step, **state}, indent=1))
    for file in partial.iterdir():
        _flush(file)
    shutil.rmtree(final, ignore_errors=True)
    os.replace(partial, final)
    _flush(stage_dir)
    for old in list_checkpoints(stage_dir)[:-keep]:
        shutil.rmtree(old)
    return final


def list_checkpoints(stage_dir: Path) -> list[Path]:
    """The complete checkpoints of a stage, oldest first."""
    return sorted(path for path in stage_dir.glob("step_*") if (path / "state.json").exists())


def load_weights(path: Path, model: Transformer) -> None:
    """Put a checkpoint's weights into `model`; refuses those of another config with the field that differs."""
    loaded = load_published(path)
    if loaded.config != model.config:
        raise ValueError(
            f"{path}: {_first_difference(loaded.config, model.config)}; use the config it was trained with"
        )
    model.load_state_dict(loaded.state_dict())


def load_state(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `save_checkpoint` took as `tensors` and `state`."""
    return load_file(path / "optimizer.safetensors"), json.loads((path / "state.json").read_text())


def weights_hash(model: nn.Module) -> str:
    """Hex SHA-256 of all weights, in the order of their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _first_difference(found: object, wanted: object, path: str = "model") -> str:
    """Say which field of two configs differs first."""
    for name in vars(wanted):
        a, b = getattr(found, name), getattr(wanted, name)
        if a != b:
            here = f"{path}.{name}"
            return (
                _first_difference(a, b, here) if hasattr(b, "__dataclass_fields__") else f"its {here} is {a}, not {b}"
            )
    return "its config differs"


def _flush(path: Path) -> None:
    """Force a file or a directory entry to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
