"""What a checkpoint's directory holds, by name. Imports no torch."""

from pathlib import Path

SINGLE = "model.safetensors"  # all weights, as published
INDEX = "model.safetensors.index.json"  # or: which file holds which
MANIFEST = "manifest.json"  # of a checkpoint that many processes wrote
OPTIMIZER, STATE = "optimizer.safetensors", "state.json"  # of one that a single process resumes from


def list_checkpoints(stage_dir: Path) -> list[Path]:
    """The complete checkpoints of a stage, oldest first."""
    return sorted(path for path in stage_dir.glob("step_*") if (path / STATE).exists() or (path / MANIFEST).exists())
