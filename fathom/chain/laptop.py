"""A run from text to report: pretraining, cold start, GRPO, evaluation, controls (R1 2), and the later stages of R1."""

import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from fathom.chain import r1, stages
from fathom.chain.progress import describe_stage, progress
from fathom.chain.stage import Record
from fathom.config import Config
from fathom.parallel.world import World, launch
from fathom.report.page import write
from fathom.runs import Run
from fathom.train.loop import Notify


def run(config: Config, out: Path) -> None:
    """Run every stage that is not done yet, then write the report."""
    directory = Run(out)
    with directory.lock():
        directory.write_config(config)
        launch(
            config.workers,
            config.device,
            run_stages,
            config,
            out,
            layout=config.parallel,
            gpu_workers=config.gpu_workers,
        )


def run_stages(world: World, config: Config, out: Path) -> None:
    """All stages, on every process; the first one talks."""
    directory = Run(out)
    started = time.perf_counter()
    console = Console(quiet=not world.is_main)
    before = "sft" if config.cold_start else "pretrain"

    def stage(title: str, work: Callable[[Notify], Record], steps: int = 0) -> None:
        with progress(console, title, steps) as notify:
            record = work(notify)
        if record:
            console.print(f"  [bold]{title}[/bold]  {describe_stage(record)}", highlight=False)

    stage("tokenizer and shards", lambda _: stages.tokenize(world, config, directory))
    stage("pretraining", lambda n: stages.pretrain(world, config, directory, n), config.pretrain.steps)
    if config.cold_start:
        stage("cold start", lambda n: stages.sft(world, config, directory, n), config.sft.steps)
    stage("evaluation before", lambda _: stages.evaluation(world, config, directory, "eval_before", before))
    stage("GRPO", lambda n: stages.grpo(world, config, directory, n), config.grpo.steps)
    stage("evaluation after", lambda _: stages.evaluation(world, config, directory, "eval_after", "grpo"))
    stage("control: random play", lambda _: stages.random_control(world, config, directory, "eval_after"))
    stage("MTP drafts", lambda _: stages.speculation(world, config, directory, "grpo"))
    if config.cold_start:
        stage("control: SFT alone", lambda n: stages.sft_control(world, config, directory, n), config.sft_control.steps)
        stage(
            "its evaluation",
            lambda _: stages.evaluation(world, config, directory, "eval_sft_control", "sft_control"),
        )
    if config.r1.enabled:
        for title, work, count in r1.steps(world, config, directory):
            stage(title, work, count)
    if world.is_main:
        page = write(directory)
        console.print(f"Done in {time.perf_counter() - started:.0f} s. The report: {page}", highlight=False)
        console.print(f"Talk to the model: fathom chat {out}", highlight=False)
