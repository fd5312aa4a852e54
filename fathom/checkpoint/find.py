"""Which checkpoint a path means. Imports no torch, so that a wrong path is answered at once."""

from pathlib import Path

from fathom.checkpoint.files import INDEX, MANIFEST, SINGLE, list_checkpoints
from fathom.runs import Run

STAGES = ("rl_preference", "rl", "tune", "grpo", "sft", "pretrain")  # the furthest trained first


def find_checkpoint(path: Path) -> Path:
    """`path` itself if it is a checkpoint or a file, else the newest one of a stage or of a run's last stage.

    Raises ValueError where there is none, or only a half-written one.
    """
    if not path.exists():
        raise ValueError(f"{path} does not exist; name a checkpoint, a run directory or a .gguf file")
    if path.is_file():
        return path
    if path.name.startswith("step_") and path not in list_checkpoints(path.parent):
        raise ValueError(f"{path} was not written to its end; name the run to take the newest whole checkpoint")
    if holds_weights(path):
        return path
    for stage in (path, *(path / name for name in STAGES)):
        if checkpoints := list_checkpoints(stage):
            return checkpoints[-1]
    raise ValueError(f"{path} holds no checkpoint; train first, or name a directory with {SINGLE}")


def holds_weights(path: Path) -> bool:
    """Whether a directory is a checkpoint itself: a model's weights lie in it, not in stages below it."""
    return any((path / name).exists() for name in (SINGLE, INDEX, MANIFEST))


def newest_stage(run: Run) -> str:
    """The last trained stage of the run."""
    for stage in STAGES:
        if run.read_ledger(stage):
            return stage
    raise ValueError(f"{run.path} holds no trained model; run `fathom run laptop --out {run.path}` first")


def newest_of_run(run: Run) -> Path:
    """The checkpoint that the run's last finished stage left; ValueError where there is none."""
    stage = newest_stage(run)
    if not (checkpoints := list_checkpoints(run.checkpoint_dir(stage))):
        raise ValueError(f"{run.path} holds no checkpoint of the stage {stage}; run `fathom {stage}` first")
    return checkpoints[-1]
