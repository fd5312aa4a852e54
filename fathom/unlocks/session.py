"""What `fathom unlocks` does: list the experiments, or run one or all and write the page."""

import json
import time
from math import inf
from pathlib import Path
from typing import Literal

from fathom.parallel.world import choose_device
from fathom.runs import Run
from fathom.unlocks import card, catalogue, page
from fathom.unlocks.book import Book
from fathom.unlocks.experiment import Context, Size


def context(
    device: Literal["auto", "cpu", "cuda"],
    size: Literal["auto"] | Size,
    directory: Path,
    minutes: float | None,
    own_run: Path | None = None,
) -> Context:
    """Where and for how long; raises ValueError for a time that is none, and for a run that finished no stage."""
    if own_run is not None and not any("dollars" in line for line in Run(own_run).read_ledger()):
        raise ValueError(f"--run {own_run} has no ledger of a finished stage; name the directory of a run that has one")
    if minutes is not None and not minutes > 0:
        raise ValueError(f"--minutes {minutes:g} is no time; give more than 0, or leave it out to have no limit")
    found = choose_device(device)
    of_device: Size = "gpu" if found.type == "cuda" else "cpu"
    deadline = inf if minutes is None else time.monotonic() + 60 * minutes
    return Context(found, of_device if size == "auto" else size, directory, deadline, own_run)


def listing(context: Context, as_json: bool) -> str:
    """All experiments with their states."""
    book, experiments = Book(context), catalogue.everything()
    if as_json:
        return json.dumps([card.record(book, experiment) for experiment in experiments])
    return card.listing(book, experiments)


def run(context: Context, name: str, as_json: bool) -> str:
    """Run the experiment of this name, or all that fit the time; what came of it, and where the page lies."""
    chosen = catalogue.everything() if name == "all" else [catalogue.find(name)]
    book = Book(context)
    cut = book.measure(chosen)
    written = page.write(book, catalogue.everything())
    if as_json:
        return json.dumps([card.record(book, experiment) for experiment in chosen])
    shown = card.text(book, chosen[0]) if name != "all" else card.listing(book, chosen)
    left = [f"Out of time: {', '.join(cut)}; the same command goes on."] if cut else []
    return "\n".join([shown, "", *left, f"{written} shows all."])
