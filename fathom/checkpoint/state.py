"""Checkpoints for resuming: weights, optimizer, loader and counters, whole or not at all."""

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fathom.checkpoint.files import OPTIMIZER, STATE, list_checkpoints
from fathom.checkpoint.hub import load_published, read_config, save_published
from fathom.config import ModelConfig
from fathom.config.published import to_published
from fathom.model import Transformer


def checkpoint_path(stage_dir: Path, step: int) -> Path:
    """Where the checkpoint behind `step` finished steps lies."""
    return stage_dir / f"step_{step:06d}"


def save_checkpoint(
    stage_dir: Path, step: int, model: Transformer, tensors: dict[str, Tensor], state: dict[str, Any], keep: int
) -> Path:
    """Write a checkpoint beside its final name and move it there: a half-written one is never found.

    `tensors` hold what resuming needs beyond the weights (optimizer, EMA), `state` plain values. Older
    checkpoints beyond `keep` are deleted afterwards. Raises OSError where the disk is full or broken; the
    checkpoints before are then as they were.
    """
    final = checkpoint_path(stage_dir, step)
    partial = stage_dir / f"partial-{step:06d}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        save_published(model, partial)
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial / OPTIMIZER)
        (partial / STATE).write_text(json.dumps({"step": step, **state}, indent=1))
        for written in (*partial.iterdir(), partial):
            flush(written)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise _fault_of_the_disk(error, partial) from error
    shutil.rmtree(final, ignore_errors=True)
    os.replace(partial, final)
    flush(stage_dir)
    prune(stage_dir, keep)
    return final


def prune(stage_dir: Path, keep: int) -> None:
    """Delete all complete checkpoints of a stage but the newest `keep`."""
    for old in list_checkpoints(stage_dir)[:-keep]:
        shutil.rmtree(old)


def load_weights(path: Path, model: Transformer) -> None:
    """Put a checkpoint's weights into `model`; refuses those of another config with the field that differs.

    Compared is what a published config.json carries: how fast the selection bias moves, say, is not in it.
    """
    loaded = load_published(path)
    _require_equal(path, loaded.config, model.config)
    model.load_state_dict(loaded.state_dict())


def require_config(path: Path, config: ModelConfig) -> None:
    """Refuse a checkpoint of another config than `config` with the field that differs, as `load_weights` does."""
    _require_equal(path, read_config(path), config)


def _require_equal(path: Path, its: ModelConfig, ours: ModelConfig) -> None:
    found, wanted = to_published(its), to_published(ours)
    for field in wanted | found:
        if found.get(field) != wanted.get(field):
            raise ValueError(
                f"{path} was made with {field}={found.get(field)}, but the config says {wanted.get(field)}; "
                "use the config it was trained with, or name another --out"
            )


def load_state(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `save_checkpoint` took as `tensors` and `state`. Raises ValueError for a damaged file."""
    try:
        return load_file(path / OPTIMIZER), json.loads((path / STATE).read_text())
    except (FileNotFoundError, SafetensorError, ValueError) as error:
        raise ValueError(
            f"{path} is damaged ({error}); delete that directory to go on from the checkpoint before it"
        ) from error


def weights_hash(model: nn.Module) -> str:
    """Hex SHA-256 of all weights, in the order of their names."""
    return hash_of_weights(sorted(model.state_dict().items()))


def hash_of_weights(weights: Iterable[tuple[str, Tensor]]) -> str:
    """What `weights_hash` says of a model whose weights come one by one, in the order of their names."""
    digest = hashlib.sha256()
    for name, tensor in weights:
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _fault_of_the_disk(error: OSError | SafetensorError, path: Path) -> OSError:
    """The error as Python's own: safetensors names only the number of what the system said."""
    if isinstance(error, OSError):
        return error
    number = re.search(r"os error (\d+)", str(error))
    return OSError(int(number[1]) if number else errno.EIO, f"a checkpoint could not be written ({error})", str(path))


def flush(path: Path) -> None:
    """Force a file or a directory entry to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
