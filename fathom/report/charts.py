"""Drawing: numbers in, one inline SVG out, coloured by the page around it.

Matplotlib knows only fixed colours, so it draws in stand-ins that become CSS variables afterwards: one picture serves
light, dark and print. Text stays text, in the page's own font.
"""

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

INK, MUTED, RULE, PAPER = "#010101", "#020202", "#030303", "#080808"
SERIES = ("#040404", "#050505", "#060606", "#070707")
CSS_COLOURS = {INK: "var(--ink)", MUTED: "var(--muted)", RULE: "var(--rule)", PAPER: "var(--paper)"} | {
    stand_in: f"var(--series-{number})" for number, stand_in in enumerate(SERIES, start=1)
}

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "fathom",  # the same numbers make the same bytes
    "font.size": 10,
    "text.color": INK,
    "text.parse_math": False,
    "axes.edgecolor": RULE,
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.7,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
}
WIDTH, HEIGHT = 400 / 72, 225 / 72  # inches of 72 user units: about a phone's width, so that text stays legible there
POINTS = 300  # a curve is drawn with at most this many
SMOOTH_FROM = 40  # steps from which a curve is drawn twice: as measured, pale, and as a moving mean


@dataclass(frozen=True, kw_only=True)
class Line:
    """One curve: `values` over `steps`; NaN leaves a gap."""

    label: str
    steps: Sequence[float]
    values: Sequence[float]


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One bar: a share with its interval; `tone` counts the page's series colours from 1, 0 is grey."""

    label: str
    value: float
    low: float
    high: float
    tone: int = 0
    pale: bool = False


def draw_lines(name: str, title: str, lines: Sequence[Line], *, percent: bool = False, from_zero: bool = False) -> str:
    """Curves over the steps of a stage; `name` keeps the ids of a page's charts apart."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
        axes = figure.add_subplot()
        for line, colour in zip(lines, SERIES, strict=False):
            _draw_line(axes, line, colour)
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
        if percent:
            axes.yaxis.set_major_formatter(lambda share, _: f"{round(100 * share, 6):g} %")
        if from_zero:
            axes.set_ylim(bottom=0)
        if len(lines) > 1:
            axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=len(lines), handlelength=1.2, borderaxespad=0)
        return inline(figure, name, title)


def draw_bars(name: str, title: str, bars: Sequence[Bar]) -> str:
    """Shares from 0 to 100 %, each bar under its label, with whiskers for the interval."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH * 1.1, 36 * len(bars) / 72))
        axes = figure.add_axes((0, 0, 1, 1))
        for place, bar in enumerate(bars):
            _draw_bar(axes, bar, place)
        axes.set_xlim(0, 1)
        axes.set_ylim(len(bars) - 0.75, -0.75)
        axes.set_axis_off()
        return inline(figure, name, title)


def draw_stacks(name: str, title: str, labels: Sequence[str], parts: Mapping[str, Sequence[float]], axis: str) -> str:
    """A bar under each label, made of the parts one behind the other; at most as many parts as series colours."""
    with matplotlib.rc_context({**STYLE, "axes.grid.axis": "x"}):
        figure = Figure(figsize=(WIDTH, (24 * len(labels) + 70) / 72), layout="constrained")
        axes = figure.add_subplot()
        left = np.zeros(len(labels))
        for (part, values), colour in zip(parts.items(), SERIES, strict=False):
            axes.barh(range(len(labels)), values, left=left, height=0.62, color=colour, alpha=0.85, label=part)
            left = left + np.asarray(values, dtype=float)
        axes.set_yticks(range(len(labels)), labels)
        axes.invert_yaxis()
        axes.set_xlabel(axis)
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, handlelength=1.2, borderaxespad=0)
        return inline(figure, name, title)


def draw_heat_map(
    name: str,
    title: str,
    shares: NDArray[np.float64],
    rows: Sequence[str],
    columns: Sequence[str] = (),
    axis: str = "routed expert",
) -> str:
    """Shares (rows, columns) as cells, the fuller the darker; small maps carry their numbers.

    Columns count from 0 unless they have names, of which a few are shown; then the values are no shares.
    """
    with matplotlib.rc_context({**STYLE, "axes.grid": False, "axes.spines.bottom": False}):
        height = min(max(34 * len(rows), 70), 420) + 44
        figure = Figure(figsize=(WIDTH, height / 72), layout="constrained")
        axes = figure.add_subplot()
        scale = LinearSegmentedColormap.from_list("share", [(*to_rgb(SERIES[0]), 0.05), (*to_rgb(SERIES[0]), 0.6)])
        axes.pcolormesh(shares, cmap=scale, vmin=0, vmax=float(shares.max()), edgecolors="none")
        if shares.shape[1] <= 8 and not columns:
            for row, column in np.ndindex(shares.shape):
                cell = float(shares[row, column])
                axes.text(column + 0.5, row + 0.5, f"{100 * cell:.0f} %", ha="center", va="center")
        axes.set_xlabel(axis)
        if columns or shares.shape[1] <= 16:
            names = columns or [str(column) for column in range(shares.shape[1])]
            apart = -(-len(names) // 6) if columns else 1
            axes.set_xticks([column + 0.5 for column in range(0, len(names), apart)], names[::apart])
        every = -(-len(rows) // 24)
        axes.set_yticks([row + 0.5 for row in range(0, len(rows), every)], rows[::every])
        axes.invert_yaxis()
        return inline(figure, name, title)


def _draw_line(axes: Axes, line: Line, colour: str) -> None:
    steps, values = np.asarray(line.steps, dtype=float), np.asarray(line.values, dtype=float)
    if len(values) < SMOOTH_FROM:
        axes.plot(steps, values, color=colour, linewidth=1.8, label=line.label, marker="o", markersize=2.5)
        return
    every = -(-len(values) // POINTS)
    axes.plot(steps[::every], values[::every], color=colour, linewidth=0.8, alpha=0.3)
    smooth = moving_mean(values, max(2, len(values) // 60))
    axes.plot(steps[::every], smooth[::every], color=colour, linewidth=1.8, label=line.label)


def _draw_bar(axes: Axes, bar: Bar, place: int) -> None:
    strength = 0.45 if bar.pale else 0.9
    colour = SERIES[bar.tone - 1] if bar.tone else MUTED
    axes.barh(place, 1, height=0.34, color=RULE, alpha=0.45)
    axes.barh(place, bar.value, height=0.34, color=colour, alpha=strength if bar.tone else 0.7 * strength)
    for ink, width in ((PAPER, 3), (INK, 1.3)):  # a halo keeps the whisker legible on any bar
        axes.plot([bar.low, bar.high], [place, place], color=ink, linewidth=width, solid_capstyle="butt")
    for end in (bar.low, bar.high):
        axes.plot([end, end], [place - 0.12, place + 0.12], color=INK, linewidth=1.3)
    axes.text(0, place - 0.27, bar.label, va="bottom")
    axes.text(1, place - 0.27, f"{100 * bar.value:.1f} %", va="bottom", ha="right")


def moving_mean(values: NDArray[np.float64], reach: int) -> NDArray[np.float64]:
    """Mean over each value and `reach` neighbours on either side, fewer at the ends; NaN counts for nothing."""
    known = np.isfinite(values)
    sums = np.concatenate(([0.0], np.cumsum(np.where(known, values, 0.0))))
    counts = np.concatenate(([0], np.cumsum(known)))
    start = np.maximum(np.arange(len(values)) - reach, 0)
    stop = np.minimum(np.arange(len(values)) + reach + 1, len(values))
    within = counts[stop] - counts[start]
    return np.where(within > 0, (sums[stop] - sums[start]) / np.maximum(within, 1), np.nan)


def inline(figure: Figure, name: str, title: str) -> str:
    """The figure as an `<svg>` element that scales with its place and reads its title aloud."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    svg = re.sub(r"<metadata>.*?</metadata>", "", buffer.getvalue(), flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->\s*", "", svg, flags=re.DOTALL)
    body = svg[svg.index("</defs>") + len("</defs>") :]  # the first holds style rules, which would hold for the page
    body = re.sub(r'<g id="[^"]*"', "<g", body)
    body = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", body)
    body = re.sub(r' font-family: [^;"]*;| transform="rotate\(-0 [^"]*"', "", body)
    body = re.sub(r"\s+", " ", body)
    for stand_in, variable in CSS_COLOURS.items():
        body = body.replace(stand_in, variable)
    width, height = 72 * figure.get_size_inches()
    return (
        f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-labelledby="{name}-title">'
        f'<title id="{name}-title">{escape(title)}</title>{body}'
    )
