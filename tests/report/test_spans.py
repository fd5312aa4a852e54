"""Bars that add up."""

import re

import pytest

from fathom.report.spans import Span, draw_spans, stack


def boxes(svg: str, colour: str) -> list[tuple[float, float]]:
    """Left edge and width of the rectangles drawn in one colour."""
    paths = re.findall(r'<path d="M ([\d.]+) [\d.]+ L ([\d.]+)[^"]*"[^>]*style="fill: ' + re.escape(colour), svg)
    return [(float(left), float(right) - float(left)) for left, right in paths]


def test_each_bar_begins_where_the_one_before_ended() -> None:
    spans = stack([("weights", 2.0, "2"), ("gradients", 3.0, "3"), ("buffers", 5.0, "5")])
    assert [(span.start, span.end) for span in spans] == [(0, 2), (2, 5), (5, 10)]
    svg = draw_spans("memory", "Memory", spans, 10.0)
    whole = boxes(svg, "var(--rule)")[0][1]
    drawn = boxes(svg, "var(--series-1)")
    assert [left / whole for left, _ in drawn] == pytest.approx([0, 0.2, 0.5], abs=1e-3)
    assert [width / whole for _, width in drawn] == pytest.approx([0.2, 0.3, 0.5], abs=1e-3)


def test_a_part_too_small_to_see_is_seen_within_the_track() -> None:
    spans = [Span(label="norms", text="0.0 %", start=1 - 1e-9, end=1.0)]
    svg = draw_spans("small", "T", spans, 1.0)
    (left, width), whole = boxes(svg, "var(--series-1)")[0], boxes(svg, "var(--rule)")[0][1]
    assert width / whole == pytest.approx(0.003, rel=0.01) and left + width <= whole * 1.0001


def test_the_limit_is_marked_in_words_and_all_colours_are_the_pages() -> None:
    svg = draw_spans("memory", "A & B", stack([("a", 3.0, "3")]), 4.0, (4.0, "4 usable"))
    assert "4 usable" in svg and "var(--ink)" in svg
    assert '<title id="memory-title">A &amp; B</title>' in svg
    assert not re.search(r"#[0-9a-fA-F]{6}", svg)
