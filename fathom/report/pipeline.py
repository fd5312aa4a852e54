"""A pipeline as SVG: a row of boxes for every rank, time from left to right.

Boxes with tooltips need no plotting library. What a rank does at once is stacked within its box: of an overlapped
pair the forward above the backward, and a green foot wherever the gradient of the weights is part of it.
"""

import math
from collections.abc import Iterator
from html import escape

from fathom.plan.timeline import Cell, Timeline

LABEL, ROW, GAP, AXIS = 58, 30, 4, 34  # user units: the rank's name, its boxes, the space below, the axis
PLOT = 940  # user units of the whole makespan, unless boxes get too narrow
NARROWEST = 7  # user units of the shortest box
FOOT = 4
DIGIT, NUMBERED = 5.4, 8  # width of a digit, and of the narrowest box with a number
WORDS = {"F": "forward", "B": "gradient of inputs", "W": "gradient of weights", "BW": "backward, both gradients"}


def draw_pipeline(name: str, title: str, timeline: Timeline, span: float | None = None) -> str:
    """The timeline as an `<svg>` that takes its colours from the page's classes; as wide as its boxes need.

    With `span` it is drawn to the scale of a plot that lasts so long, however narrow its boxes get.
    """
    shortest = min(cell.end - cell.start for cell in timeline.cells)
    scale = PLOT / span if span else max(PLOT / timeline.makespan, NARROWEST / shortest)
    width, height = LABEL + scale * timeline.makespan, timeline.ranks * (ROW + GAP) + AXIS
    parts = [
        f'<svg class="pipeline" viewBox="0 0 {width:.0f} {height}" style="min-width:{width:.0f}px" role="img" '
        f'aria-labelledby="{name}-title"><title id="{name}-title">{escape(title)}</title>',
        *(_rank(rank, timeline.makespan * scale) for rank in range(timeline.ranks)),
        *(_box(cell, scale) for cell in timeline.cells),
        *_axis(timeline, scale),
        "</svg>",
    ]
    return "".join(parts)


def _rank(rank: int, width: float) -> str:
    top = rank * (ROW + GAP)
    return (
        f'<text class="name" x="0" y="{top + ROW / 2 + 4:g}">rank {rank}</text>'
        f'<rect class="idle" x="{LABEL}" y="{top}" width="{width:.1f}" height="{ROW}"/>'
    )


def _box(cell: Cell, scale: float) -> str:
    left, width = LABEL + cell.start * scale, max((cell.end - cell.start) * scale - 1, 0.5)
    top = cell.rank * (ROW + GAP)
    if cell.kind == "FB":
        half = ROW / 2
        inside = _bar("F", cell.chunk, cell.micro_batch, left, top, width, half) + _bar(
            "BW", 1 - cell.chunk, cell.partner, left, top + half, width, half
        )
    else:
        inside = _bar(cell.kind, cell.chunk, cell.micro_batch, left, top, width, ROW)
    return f"<g><title>{escape(_words(cell))}</title>{inside}</g>"


def _bar(kind: str, chunk: int, number: int | None, left: float, top: float, width: float, height: float) -> str:
    pale = " pale" if chunk else ""
    box = f'x="{left:.1f}" width="{width:.1f}"'
    bar = f'<rect class="{kind[0]}{pale}" {box} y="{top:g}" height="{height:g}"/>'
    if kind == "BW":
        bar += f'<rect class="W{pale}" {box} y="{top + height - FOOT:g}" height="{FOOT}"/>'
    label = str(number)
    if max(len(label) * DIGIT, NUMBERED) > width:
        return bar
    middle = top + (height - (FOOT if kind == "BW" else 0)) / 2 + 3.4
    return f'{bar}<text class="number{pale}" x="{left + width / 2:.1f}" y="{middle:g}">{label}</text>'


def _words(cell: Cell) -> str:
    when = f"rank {cell.rank}, {cell.start:g} to {cell.end:g}"
    if cell.kind == "FB":
        return f"forward of {cell.micro_batch} with backward of {cell.partner}: {when}"
    return f"{WORDS[cell.kind]} of {cell.micro_batch}: {when}"


def _axis(timeline: Timeline, scale: float) -> Iterator[str]:
    top = timeline.ranks * (ROW + GAP) + 12
    step = nice_step(timeline.makespan / 10)
    for mark in range(int(timeline.makespan / step) + 1):
        yield f'<text class="tick" x="{LABEL + mark * step * scale:.1f}" y="{top}">{mark * step:g}</text>'


def nice_step(least: float) -> float:
    """The smallest of 1, 2, 5 times a power of ten that is no less than `least`."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least * (1 - 1e-9))
