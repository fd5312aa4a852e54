"""The charts of a card: numbers that draw themselves, for the page's colours, and can be read as a table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fathom.report.charts import HEIGHT, INK, MUTED, SERIES, STYLE, WIDTH, inline

DASHES = ("-", "--", ":", "-.")  # with the markers, what tells curves apart without colour
MARKERS = ("o", "s", "^", "D")


@dataclass(frozen=True, kw_only=True)
class Curves:
    """Values over a quantity, at most four curves."""

    title: str
    caption: str
    x: str  # axis, with its unit
    y: str
    curves: Mapping[str, Sequence[tuple[float, float]]]
    log_x: bool = False
    log_y: bool = False

    def __post_init__(self) -> None:
        if not 1 <= len(self.curves) <= len(SERIES):
            raise ValueError(f"a chart shows 1 to {len(SERIES)} curves, not {len(self.curves)}; draw two charts")

    @property
    def columns(self) -> list[str]:
        return [self.x, *self.curves]

    @property
    def rows(self) -> list[list[str]]:
        """A row for every x that any curve has."""
        known = {name: dict(points) for name, points in self.curves.items()}
        places = sorted({x for points in known.values() for x in points})
        return [[f"{x:g}", *(f"{p[x]:.4g}" if x in p else "-" for p in known.values())] for x in places]

    def svg(self, name: str) -> str:
        """The chart inline; `name` keeps the ids of a page's charts apart."""
        with matplotlib.rc_context(STYLE):
            figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
            axes = figure.add_subplot()
            looks = zip(SERIES, DASHES, MARKERS, strict=True)
            for (label, points), (colour, dash, marker) in zip(self.curves.items(), looks, strict=False):
                xs, ys = zip(*points, strict=True)
                look: dict[str, Any] = {"color": colour, "linestyle": dash, "marker": marker}
                axes.plot(xs, ys, label=label, markersize=3.5, linewidth=1.8, **look)
            _scale(axes, self.log_x, self.log_y)
            axes.set_xlabel(self.x)
            axes.set_ylabel(self.y)
            if len(self.curves) > 1:
                axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, handlelength=2.4, borderaxespad=0)
            return inline(figure, name, self.title)


@dataclass(frozen=True, kw_only=True)
class Bars:
    """A value under each label with its interval, and where a paper prints one, its figure as a mark."""

    title: str
    caption: str
    axis: str  # with its unit
    bars: Mapping[str, tuple[float, float, float]]  # value, low, high
    published: Mapping[str, float] | None = None

    @property
    def columns(self) -> list[str]:
        return ["", self.axis, "low", "high", *([] if self.published is None else ["published"])]

    @property
    def rows(self) -> list[list[str]]:
        rows = [[label, *(f"{value:.4g}" for value in values)] for label, values in self.bars.items()]
        if self.published is None:
            return rows
        return [[*row, f"{self.published[row[0]]:.4g}" if row[0] in self.published else "-"] for row in rows]

    def svg(self, name: str) -> str:
        """The chart inline; `name` keeps the ids of a page's charts apart."""
        with matplotlib.rc_context({**STYLE, "axes.grid.axis": "x"}):
            figure = Figure(figsize=(WIDTH, (34 * len(self.bars) + 60) / 72), layout="constrained")
            axes = figure.add_subplot()
            for place, (label, (value, low, high)) in enumerate(self.bars.items()):
                axes.barh(place, value, height=0.5, color=SERIES[0], alpha=0.85)
                axes.plot([low, high], [place, place], color=INK, linewidth=1.3)
                if self.published and label in self.published:
                    axes.plot([self.published[label]], [place], "D", color=SERIES[1], markeredgecolor=INK, markersize=6)
            axes.set_yticks(range(len(self.bars)), list(self.bars))
            axes.tick_params(axis="y", labelcolor=MUTED)
            axes.invert_yaxis()
            axes.set_xlabel(self.axis)
            return inline(figure, name, self.title)


Chart = Curves | Bars


def _scale(axes: Axes, log_x: bool, log_y: bool) -> None:
    if log_x:
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    if log_y:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
