"""The page of a plan shows the plan's figures, whatever parts of it there are."""

import re
import subprocess
import sys
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from fathom.report.plan_page import plan_page
from fathom.report.units import MISSING, SPACE

Plan = dict[str, Any]


def sections(page: str) -> dict[str, str]:
    """The text of each section, as one can type it."""
    main = page[page.index("<header>") :]
    found: dict[str, str] = {}
    for part in re.split(r"(?=<section id=)", main):
        key = re.match(r'<section id="([^"]+)"', part)
        text = unescape(re.sub(r"<[^>]+>", " ", part)).replace(SPACE, " ").replace(MISSING, "-")
        found[key[1] if key else "header"] = " ".join(text.split())
    return found


def test_every_part_is_shown(plan: Plan) -> None:
    found = sections(plan_page(plan))
    assert list(found) == [
        *("header", "summary", "parameters", "memory", "pipeline", "cost", "serving", "layouts", "command", "part-1"),
    ]
    assert "671 B parameters, of which one token uses 37.6 B, 5.6 %." in found["header"]
    assert "take 2,669,000 GPU-hours, 54.3 days by the clock, and cost $5,338,000." in found["header"]
    assert "Data 128 Pipeline 16 Schedule dualpipe" in found["header"] and "Context" not in found["header"]
    assert "Cost $5.34 M" in found["summary"] and "60.0 GiB of 75.0 GiB usable" in found["summary"]
    assert "Routed experts 653,908,770,816 98.1 %" in found["parameters"]
    assert "Training 250.46 GFLOP" in found["parameters"] and "BF16 70,272 B" in found["parameters"]
    assert "It fits, with 15.0 GiB to spare." in found["memory"]
    assert "With 20 micro-batches a rank idles 6 of 66, 9.1 %; the published formula says 6." in found["pipeline"]
    assert "rank 7 60 6 9" in found["pipeline"] and "1f1b 8 21" in found["pipeline"]
    assert "Total - 1,303 h 2,669,000 h $5,338,000 1,868,300 kWh" in found["cost"]
    assert "R1 <on top> (not included) - 71.8 h 147,000 h $294,000" in found["cost"]
    assert "Post-training: V3 Table 1" in found["cost"]
    assert "Not counted at all: research; staff." in found["cost"] and "MFU 39.1 %" in found["cost"]
    assert "Sequences 812" in found["serving"] and "8 2,596" in found["serving"]
    assert "expert=8 152,344 31.0 % 94.3 GiB 18.2 h" in found["layouts"]
    assert plan["command"] in found["command"]
    assert "parameters 671,026,419,200 671B" in found["part-1"]


@pytest.mark.parametrize(
    ("missing", "section"),
    [
        *((part, part) for part in ("memory", "cost", "serving", "layouts", "command")),
        *(("schedule", "pipeline"), ("published", "part-1"), ("model", ""), ("cache", ""), ("layout", "")),
    ],
)
def test_any_part_may_be_missing(plan: Plan, missing: str, section: str) -> None:
    whole = sections(plan_page(plan)).keys()
    del plan[missing]
    assert whole - sections(plan_page(plan)).keys() == ({section} if section else set())


def test_empty_plans_and_pipelines_alone(plan: Plan) -> None:
    assert list(sections(plan_page({}))) == ["header"]
    assert list(sections(plan_page({"schedule": plan["schedule"]}))) == ["header", "pipeline"]
    assert list(sections(plan_page({"schedule": plan["schedule"] | {"ranks": 1}, "memory": {}}))) == ["header"]


def test_a_layout_with_a_pipeline_is_drawn_with_equal_times(plan: Plan) -> None:
    del plan["schedule"]
    plan["layout"]["micro_batches"] = 120
    drawn = sections(plan_page(plan))["pipeline"]
    assert "dualpipe: 16 ranks hold 16 stages" in drawn and "the three are taken as equal" in drawn
    plan["layout"]["pipeline"] = 1
    assert "pipeline" not in sections(plan_page(plan))


def test_ways_of_a_layout_share_a_column(plan: Plan) -> None:
    plan["layouts"] = [{"layout": {"zero": 3, "micro_batches": 1536}, "mfu": 0.3}, {"layout": {}, "mfu": 0.2}]
    assert "Layout MFU ZeRO 3, micro-batches 1,536 30.0 % plain 20.0 %" in sections(plan_page(plan))["layouts"]


def test_what_does_not_fit_says_so_and_what_would(plan: Plan) -> None:
    plan["memory"] |= {"device_bytes": 50 * 2**30, "fits": False, "fix": "recompute=full"}
    assert "It does not fit, by 10.0 GiB. With recompute=full it would." in sections(plan_page(plan))["memory"]
    plan["memory"] = {"fits": False, "fix": "no layout of 1 x RTX 4090 holds it"}
    assert "no layout of 1 x RTX 4090 holds it" in sections(plan_page(plan))["memory"]


def test_a_long_step_is_drawn_short_and_says_so(plan: Plan) -> None:
    plan["schedule"] |= {"ranks": 16, "micro_batches": 120}
    page = plan_page(plan)
    assert "Drawn with 40 of the 120 micro-batches" in sections(page)["pipeline"]
    assert "With 120 micro-batches a rank idles 14 of 374, 3.7 %" in sections(page)["pipeline"]  # of the whole step
    assert len(page) < 500_000


def test_nothing_is_fetched_and_names_are_text(plan: Plan) -> None:
    page = plan_page(plan)
    assert "&lt;on top&gt;" in page and "<on top>" not in page
    assert not re.search(r'(src|href)="(?!#)', page) and "url(" not in page.replace("url(#", "")
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))


def test_the_same_plan_makes_the_same_page(plan: Plan) -> None:
    assert plan_page(plan) == plan_page(plan)


def test_the_page_needs_no_torch() -> None:
    check = "import sys, fathom.report.plan_page; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], cwd=Path(__file__).parents[2]).returncode == 0
