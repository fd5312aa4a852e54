"""Bars that start where the one above ended, so that the last one is their sum."""

from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fathom.report.charts import INK, MUTED, RULE, SERIES, STYLE, WIDTH, inline

ROW = 36 / 72  # inches


@dataclass(frozen=True, kw_only=True)
class Span:
    """One bar from `start` to `end`; `tone` counts the page's series colours from 1, 0 is grey."""

    label: str
    text: str  # the amount, in words
    start: float
    end: float
    tone: int = 1
    pale: bool = False


def stack(parts: Sequence[tuple[str, float, str]], tone: int = 1) -> list[Span]:
    """Bars of (label, amount, amount in words), each from where the one before ended."""
    spans: list[Span] = []
    for label, amount, text in parts:
        start = spans[-1].end if spans else 0.0
        spans.append(Span(label=label, text=text, start=start, end=start + amount, tone=tone))
    return spans


def draw_spans(
    name: str, title: str, spans: Sequence[Span], reach: float, limit: tuple[float, str] | None = None
) -> str:
    """Bars on a track from 0 to `reach`, with a mark at `limit`; `name` keeps the ids of a page's charts apart."""
    with matplotlib.rc_context(STYLE):
        rows = len(spans) + (limit is not None) * 0.75
        figure = Figure(figsize=(WIDTH * 0.95, ROW * rows))
        axes = figure.add_axes((0, 0, 1, 1))
        for place, span in enumerate(spans):
            _draw_span(axes, span, place, reach)
        if limit:
            _draw_limit(axes, limit, len(spans), reach)
        axes.set_xlim(0, reach)
        axes.set_ylim(rows - 0.75, -0.75)
        axes.set_axis_off()
        return inline(figure, name, title)


def _draw_span(axes: Axes, span: Span, place: int, reach: float) -> None:
    colour = SERIES[span.tone - 1] if span.tone else MUTED
    axes.barh(place, reach, height=0.34, color=RULE, alpha=0.45)
    width = max(span.end - span.start, 0.003 * reach)  # a small part stays visible
    axes.barh(
        place, width, left=min(span.start, reach - width), height=0.34, color=colour, alpha=0.4 if span.pale else 0.9
    )
    axes.text(0, place - 0.27, span.label, va="bottom")
    axes.text(reach, place - 0.27, span.text, va="bottom", ha="right")


def _draw_limit(axes: Axes, limit: tuple[float, str], rows: int, reach: float) -> None:
    where, words = limit
    for place in range(rows):
        axes.plot([where, where], [place - 0.17, place + 0.17], color=INK, linewidth=1.5, solid_capstyle="butt")
    left_half = where < reach / 2
    axes.text(where, rows - 0.62, words, color=MUTED, va="top", ha="left" if left_half else "right")
