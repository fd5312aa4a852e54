"""Charts draw what they are given, in the page's colours."""

import math
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from fathom.report.charts import Bar, Line, draw_bars, draw_heat_map, draw_lines, draw_stacks, moving_mean


def texts(svg: str) -> list[str]:
    root = ElementTree.fromstring(svg.replace("xlink:href", "href"))
    return [element.text or "" for element in root.iter() if element.tag == "text"]


def filled_widths(svg: str, colour: str) -> list[float]:
    """The widths of the rectangles drawn in one colour."""
    paths = re.findall(r'<path d="M ([\d.]+) [\d.]+ L ([\d.]+)[^"]*"[^>]*style="fill: ' + re.escape(colour), svg)
    return [float(right) - float(left) for left, right in paths]


LINES = [
    Line(label="loss & <more>", steps=range(100), values=[math.sin(step / 9) for step in range(100)]),
    Line(label="validation", steps=[0, 50, 99], values=[1.0, math.nan, 0.5]),
]


def test_moving_mean_by_hand() -> None:
    values = np.array([1.0, 2.0, np.nan, 6.0, 8.0])
    np.testing.assert_allclose(moving_mean(values, 1), [1.5, 1.5, 4.0, 7.0, 7.0])
    np.testing.assert_allclose(moving_mean(values, 0), values)
    np.testing.assert_allclose(moving_mean(values, 9), np.full(5, 4.25))


def test_lines_take_every_colour_from_the_page() -> None:
    svg = draw_lines("loss", "A & B", LINES)
    assert not re.search(r"#[0-9a-fA-F]{6}", svg)
    assert "var(--series-1)" in svg and "var(--series-2)" in svg and "var(--ink)" in svg
    assert "<style" not in svg and "DejaVu" not in svg
    assert {"loss & <more>", "validation", "step"} <= set(texts(svg))
    assert '<title id="loss-title">A &amp; B</title>' in svg


def test_ids_stay_apart_and_references_hold() -> None:
    first, second = (draw_lines(name, "T", LINES) for name in ("one", "two"))
    ids = [set(re.findall(r'\bid="([^"]+)"', svg)) for svg in (first, second)]
    assert not ids[0] & ids[1]
    for svg, known in zip((first, second), ids, strict=True):
        assert set(re.findall(r'(?:href="#|url\(#)([^")]+)', svg)) <= known


def test_the_same_numbers_make_the_same_picture() -> None:
    assert draw_lines("loss", "T", LINES) == draw_lines("loss", "T", LINES)


def test_percent_axes_count_in_percent() -> None:
    line = Line(label="share", steps=[1, 2], values=[0.0, 0.5])
    assert {"0 %", "20 %", "40 %"} <= set(texts(draw_lines("share", "T", [line], percent=True, from_zero=True)))


def test_bars_are_as_long_as_their_shares() -> None:
    bars = [
        Bar(label="before", value=0.2, low=0.1, high=0.3, tone=2),
        Bar(label="after", value=0.8, low=0.7, high=0.9, tone=1),
    ]
    svg = draw_bars("accuracy", "T", bars)
    full = filled_widths(svg, "var(--rule)")[0]
    assert filled_widths(svg, "var(--series-2)") == pytest.approx([0.2 * full], rel=1e-4)
    assert filled_widths(svg, "var(--series-1)") == pytest.approx([0.8 * full], rel=1e-4)
    assert texts(svg) == ["before", "20.0 %", "after", "80.0 %"]


def test_fuller_cells_are_darker() -> None:
    svg = draw_heat_map("share", "T", np.array([[0.1, 0.9], [0.4, 0.6]]), ["layer 0", "layer 1"])
    strengths = [float(value) for value in re.findall(r"fill: var\(--series-1\); fill-opacity: ([\d.]+)", svg)]
    assert np.argsort(strengths).tolist() == [0, 2, 3, 1]
    assert {"10 %", "90 %", "40 %", "60 %", "layer 0", "layer 1"} <= set(texts(svg))


def test_parts_of_a_stack_are_as_long_as_their_values() -> None:
    svg = draw_stacks("parts", "T", ["rank 0", "rank 1"], {"work": [3.0, 1.0], "wait": [0.5, 2.5]}, "milliseconds")
    work = filled_widths(svg, "var(--series-1)")[:2]
    assert work[1] == pytest.approx(work[0] / 3, rel=1e-3)
    assert filled_widths(svg, "var(--series-2)")[:2] == pytest.approx([work[1] / 2, 2.5 * work[1]], rel=1e-3)
    assert {"rank 0", "rank 1", "work", "wait", "milliseconds"} <= set(texts(svg))


def test_named_columns_are_shown_in_part() -> None:
    svg = draw_heat_map("loads", "T", np.ones((2, 12)), ["a", "b"], [f"{step}" for step in range(100, 112)], "step")
    shown = texts(svg)
    assert [name for name in shown if name.startswith("1")] == ["100", "102", "104", "106", "108", "110"]
    assert "step" in shown and "100 %" not in shown
