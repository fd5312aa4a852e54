"""One stage at a time, as the command line asks for it."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace

from rich.console import Console

from fathom.chain import stages
from fathom.chain.base import adopt, begins_with_base
from fathom.chain.examine import examine
from fathom.chain.progress import describe_stage, progress
from fathom.chain.stage import Record
from fathom.checkpoint.files import list_checkpoints
from fathom.checkpoint.find import holds_weights, newest_stage
from fathom.config import Config
from fathom.eval.exam import Exam
from fathom.eval.scores import require_samples
from fathom.parallel.world import World, is_first, is_restarted, is_torchrun, launch
from fathom.rl.budget import parse_dollars
from fathom.runs import Run
from fathom.train.loop import Notify

STAGES: dict[str, Callable[[World, Config, Run, Notify], Record]] = {
    "tokenize": lambda world, config, run, _: stages.tokenize(world, config, run),
    "pretrain": lambda world, config, run, notify: _pretrain(world, config, run, notify),
    "sft": lambda world, config, run, notify: _on_base(stages.sft, world, config, run, notify),
    "grpo": lambda world, config, run, notify: _on_base(stages.grpo, world, config, run, notify),
    "evaluation": lambda world, config, run, _: stages.evaluation(
        world, config, run, evaluation_name(run), newest_stage(run)
    ),
    "control: random play": lambda world, config, run, _: stages.random_control(
        world, config, run, evaluation_name(run)
    ),
}


def tokenize(config: Config, run: Run) -> None:
    """Train the tokenizer and write the shards."""
    run_alone("tokenize", config, run)


def pretrain(config: Config, run: Run, resume: bool) -> None:
    """Pretrain; text that is not tokenized yet is tokenized first."""
    require_resume(run, "pretrain", resume)
    if not is_torchrun() and not run.read_ledger("tokenize"):  # whose processes tokenize with the stage itself
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


def priced(config: Config, budget: str | None, price: float | None) -> Config:
    """The config with the flags --budget and --price in their fields."""
    if price is not None:
        config = replace(config, dollars_per_hour=price)
    if budget is not None:
        config = replace(config, grpo=replace(config.grpo, budget_dollars=parse_dollars(budget)))
    return config


def evaluate(config: Config, run: Run, exam: Exam) -> None:
    """Score the newest model of the run on held-out problems, with random play beside it, or on questions of files."""
    if exam.asks_files or holds_weights(run.path):
        console = Console()
        console.print(f"Answers: {examine(config, run, exam, console)}", highlight=False, soft_wrap=True)
        return
    if exam.samples:
        config = replace(config, eval=replace(config.eval, samples=exam.samples))
    require_samples(config.eval.k, config.eval.samples)
    run_alone("evaluation", config, run, keep_config=False)
    run_alone("control: random play", config, run, keep_config=False)


def run_alone(name: str, config: Config, run: Run, steps: int = 0, keep_config: bool = True) -> None:
    """Run one stage in the config's number of processes; `keep_config` makes its config the run's own."""
    with run.lock() if is_first() else nullcontext():
        if keep_config and is_first():
            run.write_config(config)
        launch(
            config.workers,
            config.device,
            _run_stage,
            name,
            config,
            run,
            steps,
            layout=config.parallel,
            gpu_workers=config.gpu_workers,
        )


def _run_stage(world: World, name: str, config: Config, run: Run, steps: int) -> None:
    console = Console(quiet=not world.is_main)
    with progress(console, name, steps, run.read_metrics(name)) as notify:
        record = STAGES[name](world, config, run, notify)
    if record:
        console.print(f"[bold]{name}[/bold]  {describe_stage(record)}", highlight=False)


def _pretrain(world: World, config: Config, run: Run, notify: Notify) -> Record:
    """Pretraining on the text that the config describes; other text that is there already is refused."""
    stages.require_layout("pretrain", config.pretrain, config.model, world)  # before the text is cut
    stages.tokenize(world, config, run, start_over=False)
    return stages.pretrain(world, config, run, notify, start_over=False)


def _on_base(stage: Callable[..., Record], world: World, config: Config, run: Run, notify: Notify) -> Record:
    """A stage of a run that pretrained, or that begins with the checkpoint in `config.init`."""
    if begins_with_base(config, run):
        adopt(world, config, run)
    return stage(world, config, run, notify, start_over=False)


def require_resume(run: Run, stage: str, resume: bool) -> None:
    """Refuse to touch a stage that has begun unless the user asked to go on with it, or torchrun has begun it again."""
    checkpoints = list_checkpoints(run.checkpoint_dir(stage))
    if checkpoints and not resume and not is_restarted():
        raise ValueError(
            f"{run.path} holds {stage} up to {checkpoints[-1].name}; add --resume to go on with it, "
            "or name another directory with --out"
        )


def evaluation_name(run: Run) -> str:
    """Under which name the newest model's evaluation is booked, for the report to find it."""
    names = {"grpo": "eval_after", "tune": "eval_tune", "rl": "eval_rl", "rl_preference": "eval_rl"}
    return names.get(newest_stage(run), "eval_before")
