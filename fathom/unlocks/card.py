"""A card: the claim, its printed figure, what was measured here, and what that does and does not show."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from fathom.runs import finite
from fathom.unlocks.book import Book
from fathom.unlocks.experiment import Experiment, plain


def record(book: Book, experiment: Experiment) -> dict[str, Any]:
    """Everything about an experiment, as `unlocks.json` has it."""
    lines, result, size = book.finished(experiment), book.result(experiment), book.context.size
    return finite(
        {
            "name": experiment.name,
            "title": experiment.title,
            "claim": asdict(experiment.claim),
            "state": book.state(experiment),
            "size": size,
            "device": book.context.device.type,
            "minutes": round(book.minutes(experiment), 3),
            "command": command(book, experiment),
            "differences": experiment.differences(size),
            "variants": plain(experiment.variants(size)),
            "result": plain(result) if result else None,
            "shows": experiment.shows,
            "does_not_show": experiment.does_not_show,
            "seeds": [{key: line[key] for key in line if key != "stage"} for line in lines.values()],
        }
    )


def command(book: Book, experiment: Experiment) -> str:
    """The words that repeat it."""
    size = (
        "" if book.context.size == book.context.device.type.replace("cuda", "gpu") else f" --size {book.context.size}"
    )
    own = f" --run {book.context.own_run}" if experiment.reads_run and book.context.own_run else ""
    return f"fathom unlocks {experiment.name} --device {book.context.device.type}{size}{own}"


def text(book: Book, experiment: Experiment) -> str:
    """The card as a page of a terminal."""
    claim, result = experiment.claim, book.result(experiment)
    lines = [
        f"{experiment.name}: {experiment.title}",
        "",
        f"claim       {claim.says}",
        f"source      {claim.source}",
        f"published   {claim.published}",
        f"conditions  {claim.conditions}",
    ]
    for name, fields in experiment.differences(book.context.size).items():
        lines += [f"variant     {name}: {difference_text(fields)}"]
    if result is None:
        return "\n".join([*lines, "", f"Not run yet; about {book.minutes(experiment):.1f} minutes here."])
    return "\n".join(
        [
            *lines,
            f"measured    {result.measured}",
            f"verdict     {result.verdict}: {result.because}",
            "",
            *table([result.headings, *result.rows]),
            "",
            f"Shows: {experiment.shows}",
            f"Does not show: {experiment.does_not_show}",
        ]
    )


def difference_text(fields: dict[str, tuple[Any, Any]]) -> str:
    """Such as `attention.kind mla -> gqa`."""
    return ", ".join(f"{name} {mine} -> {other}" for name, (mine, other) in fields.items())


def listing(book: Book, experiments: Sequence[Experiment]) -> str:
    """One line an experiment: state, minutes here, last result."""
    rows: list[Sequence[str]] = [("experiment", "state", "minutes", "verdict", "measured here")]
    for experiment in experiments:
        result = book.result(experiment)
        said = (result.verdict, result.measured) if result else ("-", f"paper: {experiment.claim.published}")
        rows.append((experiment.name, book.state(experiment), f"{book.minutes(experiment):.1f}", *said))
    return "\n".join(table(rows, numbers={2}))


def table(rows: Sequence[Sequence[str]], numbers: set[int] | None = None) -> list[str]:
    """Lines with their columns below each other, a rule under the first; all but the first are numbers if not said."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    right = set(range(1, len(widths))) if numbers is None else numbers
    lines = [
        "  "
        + "  ".join(c.rjust(w) if i in right else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    ]
    lines.insert(1, "  " + "-" * (sum(widths) + 2 * len(widths) - 2))
    return [line.rstrip() for line in lines]
