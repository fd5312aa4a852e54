"""Measured steps of a pipeline, each drawn above what the planner makes of its parts."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from fathom.plan.measured import from_record
from fathom.report.pipeline import draw_pipeline
from fathom.runs import Record


@dataclass(frozen=True, kw_only=True)
class MeasuredPipeline:
    """The two charts of a step, and what there is to say of them."""

    stage: str
    step: int
    schedule: str
    sentence: str
    measured: str  # SVG, in milliseconds as the other
    ideal: str
    kinds: Collection[str]
    second: str  # what the paler boxes are; empty where there are none


def measured_pipelines(records: Sequence[Record]) -> list[MeasuredPipeline]:
    """The last measured step of every stage."""
    return [_charts(record) for record in {record["stage"]: record for record in records}.values()]


def _charts(record: Record) -> MeasuredPipeline:
    found = from_record(record)
    timeline, ideal = found.timeline, found.ideal
    title, span = f"{timeline.schedule} on {timeline.ranks} ranks", max(timeline.makespan, ideal.makespan)
    return MeasuredPipeline(
        stage=record["stage"],
        step=record["step"],
        schedule=timeline.schedule,
        sentence=found.sentence,
        measured=draw_pipeline(f"{record['stage']}-measured", f"{title}, measured", timeline, span),
        ideal=draw_pipeline(f"{record['stage']}-ideal", f"{title}, played out", ideal, span),
        kinds={cell.kind for cell in (*timeline.cells, *ideal.cells)},
        second="second stage of the rank" if any(cell.chunk for cell in timeline.cells) else "",
    )
