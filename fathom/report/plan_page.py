"""The page of a plan: one HTML file that fetches nothing, from the numbers that `fathom plan --json` prints."""

from collections.abc import Mapping
from typing import Any

from fathom.report.page import environment
from fathom.report.plan_contents import gather_plan


def plan_page(plan: Mapping[str, Any]) -> str:
    """The whole page; parts that the plan lacks are left out."""
    return environment().get_template("plan.html").render(gather_plan(plan))
