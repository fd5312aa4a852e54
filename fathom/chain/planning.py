"""The verb `plan`: paper arithmetic on a config, printed, kept as JSON or made a page."""

import json
import shlex
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

from rich.console import Console

from fathom.config import Config
from fathom.config.load import from_json
from fathom.config.published import from_published
from fathom.plan.prediction import compare, keep, path_of
from fathom.plan.question import Question
from fathom.plan.search import is_preset
from fathom.plan.summary import Plan, make_plan
from fathom.presets import preset
from fathom.report.plan_text import show_comparison, show_pipeline, show_plan
from fathom.runs import Run, write_whole


def plan(config: Config, question: Question, out: Path | None = None) -> None:
    """Answer `question` on the terminal or as JSON, and as a page if one is wanted; a run in `out` keeps it too."""
    if question.compare:
        compared = compare(Run(question.compare))
        if question.json:
            stages = {
                stage: [asdict(figure) | {"error": figure.error} for figure in compared[stage]] for stage in compared
            }
            print(json.dumps(stages))
        else:
            show_comparison(compared, Console())
        return
    if question.model and config.preset != config_of(question.model).preset:
        raise ValueError(f"--preset {config.preset} and --model {question.model} exclude each other; leave one out")
    found = make_plan(config, question)
    if out:
        keep_plan(found, config, Run(out))
    if found.get("command") and (out or not is_preset(config)):
        found["command"] += f" --out {shlex.quote(str(out or 'RUN'))}"
    if question.html:
        from fathom.report.plan_page import plan_page

        write_whole(question.html, plan_page(found))
    if question.json:
        print(json.dumps(found))
        return
    console = Console()
    if question.schedule:
        show_pipeline(found["schedule"], console)
    else:
        show_plan(found, console)
    if question.html:
        console.print(f"\n{question.html}", highlight=False)


def keep_plan(found: Plan, config: Config, run: Run) -> None:
    """Keep what the plan predicts for `fathom pretrain` in the run's directory, and the config if no preset has it."""
    if not found.get("prediction"):
        raise ValueError("there is nothing to predict: `fathom pretrain` runs no layout that fits; leave --out away")
    if not is_preset(config):
        if (run.path / "config.json").exists() and run.config != config:
            raise ValueError(f"{run.path} holds another config; name a new directory for this plan")
        run.write_config(config)
    keep(run, found["prediction"])


def config_of(path: Path) -> Config:
    """The config of a run, or a published `config.json` with the training of V3."""
    file = path / "config.json" if path.is_dir() else path
    if path.is_dir() and not file.exists() and path_of(Run(path)).exists():
        raise ValueError(f"{path} is planned and not yet begun; train with --out {path} first")
    if not file.exists():
        raise ValueError(f"{file} does not exist; name a config.json, its directory, or a run")
    text = file.read_text(encoding="utf-8", errors="replace")
    try:
        values = json.loads(text)
    except json.JSONDecodeError:
        values = None
    if not isinstance(values, dict):
        raise ValueError(f"{file} is no JSON object; name a config.json, its directory, or a run")
    if "model" in values:
        return from_json(text)
    model, base = from_published(cast(dict[str, Any], values)), preset("v3")
    sft = replace(base.sft, seq_len=min(base.sft.seq_len, model.max_position_embeddings))
    return replace(base, preset=file.resolve().parent.name, model=model, sft=sft)
