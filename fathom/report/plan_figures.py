"""The charts of a plan."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fathom.plan.schedule import Timeline, Times, bubble, least_micro_batches, simulate, stages_of
from fathom.report import units
from fathom.report.amounts import memory, name, price, share
from fathom.report.figures import Figure
from fathom.report.pipeline import draw_pipeline
from fathom.report.sheets import Grid, grid
from fathom.report.spans import Span, draw_spans, stack

MOST_PLAYED = 20_000  # micro-batches times ranks
MOST_CELLS = 1500  # of a pipeline's chart; a longer step is drawn with fewer micro-batches


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """A chart of a schedule, and what there is to say of it."""

    svg: str
    sentences: Sequence[str]
    kinds: Collection[str]
    second: str  # what the paler boxes are; empty where there are none
    numbers: Grid
    comparison: Grid | None  # with the other schedules


def parameter_figures(model: Mapping[str, Any]) -> list[Figure]:
    """Where the parameters are, and which of them a token meets."""
    captions = {
        "parts": ("parameters", "All parameters", "What has to be stored and trained", 1),
        "active_parts": ("active", "What one token uses", "What has to be read and multiplied for it", 2),
    }
    figures: list[Figure] = []
    for key, (chart, title, caption, tone) in captions.items():
        counts = {part: count for part, count in (model.get(key) or {}).items() if count}
        total = sum(counts.values())
        if not total:
            continue
        parts = [(name(part), count, f"{units.size(count)} · {share(count / total)}") for part, count in counts.items()]
        tables = "embedding, head and MTP" if counts.get("mtp") else "embedding and head"
        figures.append(
            Figure(
                name=chart,
                title=title,
                caption=f"{caption}: {units.size(total)}, {tables} included.",
                svg=draw_spans(chart, title, stack(parts, tone), total),
                columns=("part", "parameters", "share"),
                rows=[(name(part), f"{count:,}", share(count / total)) for part, count in counts.items()],
            )
        )
    return figures


def memory_figures(room: Mapping[str, Any]) -> list[Figure]:
    """The parts of the fullest device's memory against what it has."""
    parts = {part: size for part, size in (room.get("parts") or {}).items() if size}
    if not parts:
        return []
    total, device = sum(parts.values()), device_bytes(room)
    spans = stack([(name(part), size, memory(size)) for part, size in parts.items()])
    tone = 3 if not device or total <= device else 2
    spans.append(Span(label="Total", text=memory(total), start=0, end=total, tone=tone))
    limit = (device, f"{memory(device)} usable") if device else None
    figure = Figure(
        name="memory",
        title="Memory of the fullest device",
        caption="Each part begins where the one above ends.",
        svg=draw_spans("memory", "Memory of the fullest device", spans, max(total, device or 0), limit),
        columns=("part", "GiB", "bytes"),
        rows=[(name(part), f"{size / 2**30:,.2f}", f"{size:,.0f}") for part, size in {**parts, "total": total}.items()],
    )
    return [figure]


def stage_name(line: Mapping[str, Any]) -> str:
    """A line of the bill, as the start of a sentence."""
    words = str(line.get("name") or "a stage")
    return words[:1].upper() + words[1:]


def device_bytes(room: Mapping[str, Any]) -> float | None:
    """What the device has, if the plan says."""
    return room.get("device_bytes") or room.get("device")


def cost_figures(lines: Sequence[Mapping[str, Any]]) -> list[Figure]:
    """How the dollars add up; what the sum leaves out begins at its end, pale."""
    counted = [line for line in lines if line.get("included", True) and line.get("dollars")]
    if not counted:
        return []
    spans = stack([(stage_name(line), line["dollars"], price(line["dollars"])) for line in counted])
    total, has_apart = spans[-1].end, len(counted) < sum(bool(line.get("dollars")) for line in lines)
    spans.append(Span(label="Total", text=price(total), start=0, end=total, tone=2))
    for line in lines:
        if line.get("dollars") and not line.get("included", True):
            label, end = f"{stage_name(line)}, not included", spans[-1].end + line["dollars"]
            spans.append(
                Span(label=label, text=price(line["dollars"]), start=spans[-1].end, end=end, tone=0, pale=True)
            )
    figure = Figure(
        name="dollars",
        title="Dollars",
        caption="Each stage begins where the one above ends." + " Grey is not part of the total." * has_apart,
        svg=draw_spans("dollars", "Dollars", spans, max(span.end for span in spans)),
        columns=("stage", "dollars"),
        rows=[(span.label, span.text) for span in spans],
    )
    return [figure]


def pipeline(schedule: Mapping[str, Any]) -> Pipeline | None:
    """The schedule played out; None where the plan has no pipeline."""
    if not schedule.get("times") or int(schedule.get("ranks") or 0) < 2:
        return None
    kind = str(schedule.get("schedule") or schedule["name"])
    ranks, wanted, times = int(schedule["ranks"]), int(schedule["micro_batches"]), Times(**schedule["times"])
    whole = simulate(kind, ranks, min(wanted, max(MOST_PLAYED // ranks, _few(kind, ranks))), times)
    drawn = _shortened(whole)
    sentences = [" ".join([_stages(whole), schedule.get("note", "")]), _idle(whole)]
    if drawn.micro_batches < wanted:
        sentences.append(
            f"Drawn with {drawn.micro_batches:,} of the {wanted:,} micro-batches: more of them only repeat the middle."
        )
    second = "from the last rank" if kind == "dualpipe" else "second stage of the rank"
    return Pipeline(
        svg=draw_pipeline("schedule", f"{kind} on {whole.ranks} ranks", drawn),
        sentences=sentences,
        kinds={cell.kind for cell in drawn.cells},
        second=second if any(cell.chunk for cell in drawn.cells) else "",
        numbers=_ranks(whole),
        comparison=grid("Idle time by schedule", schedule["bubbles"]) if schedule.get("bubbles") else None,
    )


def _ranks(timeline: Timeline) -> Grid:
    loads = zip(timeline.bubble, timeline.peak_activations, strict=True)
    return Grid(
        title="Pipeline, as numbers",
        columns=("rank", "busy", "idle", "most chunks of activations held"),
        rows=[
            (f"rank {rank}", f"{timeline.makespan - idle:.4g}", f"{idle:.4g}", str(held))
            for rank, (idle, held) in enumerate(loads)
        ],
    )


def _few(schedule: str, ranks: int) -> int:
    """Micro-batches enough to show how a schedule fills, works and drains."""
    return least_micro_batches(schedule, ranks) + 2 * -(-ranks // 4)


def _shortened(timeline: Timeline) -> Timeline:
    """The timeline, or that of fewer micro-batches where its boxes would be too many to look at."""
    few = _few(timeline.schedule, timeline.ranks)
    if len(timeline.cells) <= MOST_CELLS or few >= timeline.micro_batches:
        return timeline
    return simulate(timeline.schedule, timeline.ranks, few, timeline.times)


def _stages(timeline: Timeline) -> str:
    times, stages = timeline.times, stages_of(timeline.schedule, timeline.ranks)
    twice = ", each of them twice" if timeline.schedule == "dualpipe" else ""
    pair = "" if times.FB is None else f"; an overlapped pair takes {times.overlapped:g}"
    return (
        f"{timeline.schedule}: {timeline.ranks} ranks hold {stages} stages{twice}. For one micro-batch and stage a "
        f"forward takes {times.F:g}, the gradient of the inputs {times.B:g} and that of the weights {times.W:g}{pair}."
    )


def _idle(timeline: Timeline) -> str:
    played = (
        f"With {timeline.micro_batches:,} micro-batches a rank idles {max(timeline.bubble):.4g} of "
        f"{timeline.makespan:.4g}, {units.percent(timeline.bubble_share)}"
    )
    if timeline.schedule == "zbv":
        return f"{played}."
    return f"{played}; the published formula says {bubble(timeline.schedule, timeline.ranks, timeline.times):.4g}."
