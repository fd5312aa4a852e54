"""Where each process's time went, as stacked bars."""

from collections.abc import Mapping

import numpy as np

from fathom.report.charts import draw_stacks
from fathom.report.figures import STAGES, Figure, Records, present

PARTS = {
    "compute": "compute",
    "communication": "exposed communication",
    "bubble": "pipeline bubble",
    "data": "data wait",
}


def process_figures(metrics: Mapping[str, Records]) -> list[Figure]:
    """The breakdowns of every stage that recorded some."""
    return present([_breakdown(stage, metrics.get(stage, ())) for stage in STAGES])


def _breakdown(stage: str, records: Records) -> Figure | None:
    """The median step of every process."""
    found = [record["breakdown"] for record in records if record.get("breakdown")]
    found = [ranks for ranks in found if len(ranks) == len(found[-1])]  # a resumed run may have had fewer processes
    if not found:
        return None
    steps = np.array([[[rank[part] for part in PARTS] for rank in ranks] for ranks in found])  # (N, ranks, parts)
    milliseconds = 1000 * np.median(steps, axis=0)
    ranks = [f"rank {rank}" for rank in range(len(milliseconds))]
    title = f"Where a step of {STAGES[stage]} goes"
    times = f"{len(found)} steps" if len(found) > 1 else "one step"
    parts = {label: milliseconds[:, place].tolist() for place, label in enumerate(PARTS.values())}
    return Figure(
        name=f"breakdown-{stage}",
        title=title,
        caption=(
            f"Milliseconds of each process, the median of {times} under a profiler, which slows them. "
            "Exposed is what no computation hides."
        ),
        svg=draw_stacks(f"breakdown-{stage}", title, ranks, parts, "milliseconds"),
        columns=["", *PARTS.values(), "step"],
        rows=[
            [rank, *(f"{value:.1f}" for value in (*values, values.sum()))]
            for rank, values in zip(ranks, milliseconds, strict=True)
        ],
    )
