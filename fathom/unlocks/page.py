"""The page of all experiments, one HTML file that fetches nothing, and the same numbers as JSON."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fathom.report.page import environment
from fathom.runs import write_whole
from fathom.unlocks.book import Book
from fathom.unlocks.card import record
from fathom.unlocks.experiment import Experiment


def write(book: Book, experiments: Sequence[Experiment]) -> Path:
    """Write `unlocks.html` and `unlocks.json` into the directory of the experiments; returns the page's path."""
    cards = [record(book, experiment) for experiment in experiments]
    directory = book.context.directory
    write_whole(directory / "unlocks.json", json.dumps({"cards": cards}, indent=1, allow_nan=False))
    figures = [_figures(book, experiment) for experiment in experiments]
    settled = [card["result"]["verdict"] for card in cards if card["result"]]
    counts = {verdict: settled.count(verdict) for verdict in ("supported", "not supported", "inconclusive")}
    machine = next((card["seeds"][-1]["machine"] for card in cards if card["seeds"]), None)
    content = {"cards": list(zip(cards, figures, strict=True)), "counts": counts, "machine": machine}
    content |= {"size": book.context.size, "not_run": len(cards) - len(settled)}
    write_whole(directory / "unlocks.html", environment().get_template("unlocks.html").render(content))
    return directory / "unlocks.html"


def _figures(book: Book, experiment: Experiment) -> list[dict[str, Any]]:
    result = book.result(experiment)
    charts = result.charts if result else ()
    return [
        {
            "title": chart.title,
            "caption": chart.caption,
            "svg": chart.svg(f"{experiment.name}-{number}"),
            "columns": chart.columns,
            "rows": chart.rows,
        }
        for number, chart in enumerate(charts)
    ]
