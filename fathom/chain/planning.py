"""The verb `plan`: paper arithmetic on a config, printed, kept as JSON or made a page."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from rich.console import Console

from fathom.config import Config
from fathom.config.load import from_json
from fathom.config.published import from_published
from fathom.plan.prediction import compare, keep
from fathom.plan.question import Question
from fathom.plan.summary import Plan, make_plan
from fathom.presets import preset
from fathom.report.plan_text import show_comparison, show_pipeline, show_plan
from fathom.runs import Run, write_whole


def plan(config: Config, question: Question, out: Path | None = None) -> None:
    """Answer `question` on the terminal or as JSON, and as a page if one is wanted; a run in `out` keeps it too."""
    if question.compare:
        show_comparison(compare(Run(question.compare)), Console())
        return
    found = make_plan(config, question)
    if out:
        keep_prediction(found, Run(out))
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


def keep_prediction(found: Plan, run: Run) -> None:
    """Keep what the plan predicts for `fathom pretrain` in the run's directory, for --compare."""
    if not found.get("prediction"):
        raise ValueError("there is nothing to predict: `fathom pretrain` runs no layout that fits; leave --out away")
    keep(run, found["prediction"])


def config_of(path: Path) -> Config:
    """The config of a run, or a published `config.json` with the training of V3."""
    file = path / "config.json" if path.is_dir() else path
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
