"""The chart of a pipeline holds every cell at its place."""

import re
import xml.etree.ElementTree as ElementTree

import pytest

from fathom.plan.schedule import Times, simulate
from fathom.report.pipeline import GAP, LABEL, PLOT, ROW, draw_pipeline, nice_step

EQUAL = Times(F=1, B=1, W=1)


def groups(svg: str) -> list[tuple[str, list[dict[str, str]], list[str]]]:
    """Tooltip, rectangles and numbers of each box."""
    root = ElementTree.fromstring(svg)
    return [
        (
            group.findtext("title") or "",
            [rect.attrib for rect in group.iter("rect")],
            [text.text or "" for text in group.iter("text")],
        )
        for group in root.iter("g")
    ]


def test_every_cell_is_a_box_as_long_as_its_time() -> None:
    timeline = simulate("1f1b", 2, 3, EQUAL)
    boxes = groups(draw_pipeline("p", "T", timeline))
    assert len(boxes) == len(timeline.cells)
    scale = PLOT / timeline.makespan
    for cell, (title, rectangles, numbers) in zip(timeline.cells, boxes, strict=True):
        assert float(rectangles[0]["x"]) == pytest.approx(LABEL + cell.start * scale, abs=0.06)
        assert float(rectangles[0]["width"]) == pytest.approx((cell.end - cell.start) * scale - 1, abs=0.06)
        assert float(rectangles[0]["y"]) == cell.rank * (ROW + GAP)
        assert numbers == [str(cell.micro_batch)]
        assert title.endswith(f"rank {cell.rank}, {cell.start:g} to {cell.end:g}")


def test_an_overlapped_pair_shows_both_micro_batches_on_both_chunks() -> None:
    timeline = simulate("dualpipe", 4, 8, EQUAL)
    boxes = groups(draw_pipeline("p", "T", timeline))
    pairs = [(cell, box) for cell, box in zip(timeline.cells, boxes, strict=True) if cell.kind == "FB"]
    assert pairs
    for cell, (title, rectangles, numbers) in pairs:
        assert title.startswith(f"forward of {cell.micro_batch} with backward of {cell.partner}")
        assert numbers == [str(cell.micro_batch), str(cell.partner)]
        pale = [rectangle["class"].endswith("pale") for rectangle in rectangles]
        assert pale == [bool(cell.chunk), not cell.chunk, not cell.chunk]
        assert [rectangle["class"][0] for rectangle in rectangles] == ["F", "B", "W"]
        assert sum(float(rectangle["height"]) for rectangle in rectangles[:2]) == ROW


def test_it_takes_its_colours_from_the_page_and_reads_its_title() -> None:
    svg = draw_pipeline("p", "A & B", simulate("zbv", 2, 4, EQUAL))
    assert '<title id="p-title">A &amp; B</title>' in svg
    assert "#" not in svg and "fill" not in svg


def test_long_steps_get_wider_instead_of_too_narrow() -> None:
    svg = draw_pipeline("p", "T", simulate("1f1b", 2, 200, EQUAL))
    width = re.search(r'viewBox="0 0 (\d+) ', svg)
    assert width and int(width[1]) == pytest.approx(LABEL + 7 * (200 * 3 + 3))


def test_nice_steps() -> None:
    assert [nice_step(least) for least in (0.03, 0.5, 1, 3.2, 6.6, 10)] == [0.05, 0.5, 1, 5, 10, 10]
