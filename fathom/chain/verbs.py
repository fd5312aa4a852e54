"""One stage at a time, as the command line asks for it."""

from collections.abc import Callable

from rich.console import Console

from fathom.chain import stages
from fathom.chain.progress import describe_stage, progress
from fathom.chain.stage import Record
from fathom.checkpoint.state import list_checkpoints
from fathom.config import Config
from fathom.parallel.world import World, launch
from fathom.runs import Run
from fathom.train.loop import Notify

STAGES: dict[str, Callable[[World, Config, Run, Notify], Record]] = {
    "tokenize": lambda world, config, run, _: stages.tokenize(world, config, run),
    "pretrain": stages.pretrain,
    "sft": stages.sft,
    "grpo": stages.grpo,
    "eval": lambda world, config, run, _: stages.evaluation(world, config, run, "eval", newest_stage(run)),
}


def tokenize(config: Config, run: Run) -> None:
    """Train the tokenizer and write the shards."""
    run_alone("tokenize", config, run)


def pretrain(config: Config, run: Run, resume: bool) -> None:
    """Pretrain; text that is not tokenized yet is tokenized first."""
    require_resume(run, "pretrain", resume)
    if not run.read_ledger("tokenize"):
        tokenize(config, run)
    run_alone("pretrain", config, run, config.pretrain.steps)


def sft(config: Config, run: Run, resume: bool) -> None:
    """Fine-tune on worked solutions."""
    require_resume(run, "sft", resume)
    run_alone("sft", config, run, config.sft.steps)


def grpo(config: Config, run: Run, resume: bool) -> None:
    """Reinforcement learning on the task."""
    require_resume(run, "grpo", resume)
    run_alone("grpo", config, run, config.grpo.steps)


def evaluate(config: Config, run: Run) -> None:
    """Score the newest model of the run on held-out problems."""
    run_alone("eval", config, run)


def run_alone(name: str, config: Config, run: Run, steps: int = 0) -> None:
    """Run one stage in the config's number of processes."""
    with run.lock():
        if name != "eval":
            run.write_config(config)
        launch(config.workers, config.device, _run_stage, name, config, run, steps)


def _run_stage(world: World, name: str, config: Config, run: Run, steps: int) -> None:
    console = Console(quiet=not world.is_main)
    with progress(console, name, steps) as notify:
        record = STAGES[name](world, config, run, notify)
    console.print(f"[bold]{name}[/bold]  {describe_stage(record)}", highlight=False)


def require_resume(run: Run, stage: str, resume: bool) -> None:
    """Refuse to touch a stage that has begun unless the user asked to go on with it."""
    checkpoints = list_checkpoints(run.checkpoint_dir(stage))
    if checkpoints and not resume:
        raise ValueError(
            f"{run.path} holds {stage} up to {checkpoints[-1].name}; add --resume to go on with it, "
            "or name another directory with --out"
        )


def newest_stage(run: Run) -> str:
    """The last trained stage of the run."""
    for stage in ("grpo", "sft", "pretrain"):
        if run.read_ledger(stage):
            return stage
    raise ValueError(f"{run.path} holds no trained model; run `fathom run laptop --out {run.path}` first")
