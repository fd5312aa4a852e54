"""The report of a run: one HTML file that fetches nothing and says only what the run recorded."""

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from fathom.report import units
from fathom.report.amounts import name
from fathom.report.contents import gather_contents, name_stage, summarize_score
from fathom.runs import Run, write_whole


def write(run: Run) -> Path:
    """Write `report.html` into the run and return its path.

    Stages that the run lacks are left out. Raises ValueError for a run without metrics.
    """
    page = environment().get_template("page.html").render(gather_contents(run))
    write_whole(run.report_path, page)
    return run.report_path


def environment() -> Environment:
    """The templates of all pages; names they misspell fail loudly, and whatever a model wrote is escaped."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "template"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "name": name,
        "count": units.count,
        "dollars": units.dollars,
        "duration": units.duration,
        "gibibytes": units.gibibytes,
        "percent": units.percent,
        "power_of_ten": units.power_of_ten,
        "score": summarize_score,
        "stage_name": name_stage,
    }
    return environment
