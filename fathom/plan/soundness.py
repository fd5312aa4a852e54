"""Whether a timeline is a training step: judged from its cells alone, not from how they came about."""

from collections import Counter

from fathom.plan.timeline import Part, Timeline, needs, parts_of, stages_of

ROUNDING = 1e-9  # relative to the whole timeline: sums of floats in another order


def check(timeline: Timeline) -> None:
    """Raise ValueError unless the timeline is a training step.

    Every micro-batch must pass every stage of its direction exactly once forward and once backward for inputs and for
    weights, on a rank that has the stage; nothing starts before what it needs has ended; a rank does one thing at once
    and takes the given times.
    """
    _check_ranks(timeline, ROUNDING * timeline.makespan)
    check_parts(timeline)


def check_parts(timeline: Timeline) -> None:
    """Raise ValueError unless every pass runs once, behind what it needs; a measured step keeps to this much."""
    slack = ROUNDING * timeline.makespan
    stages = stages_of(timeline.schedule, timeline.ranks)
    where = {cell: list(parts_of(timeline.schedule, timeline.ranks, cell.rank, cell)) for cell in timeline.cells}
    done = Counter(part for parts in where.values() for part in parts)
    wanted = {
        Part(kind, s, m) for kind in ("F", "B", "W") for s in range(stages) for m in range(timeline.micro_batches)
    }
    for part in sorted(wanted | done.keys()):
        if done[part] != (part in wanted):
            raise ValueError(f"{_words(part)} runs {done[part]} times instead of {int(part in wanted)}")
    ends = {part: cell.end for cell, parts in where.items() for part in parts}
    for cell, parts in where.items():
        for part in parts:
            for need in needs(part, stages):
                if need not in parts and ends[need] > cell.start + slack:
                    raise ValueError(f"{_words(part)} starts at {cell.start:g}, before {_words(need)} has ended")


def _check_ranks(timeline: Timeline, slack: float) -> None:
    latest: dict[int, float] = {}
    for cell in sorted(timeline.cells, key=lambda cell: (cell.rank, cell.start)):
        if cell.start < latest.get(cell.rank, 0.0) - slack:
            raise ValueError(f"rank {cell.rank} does two things at {cell.start:g}")
        latest[cell.rank] = cell.end
        if abs(cell.end - cell.start - timeline.times.of(cell.kind)) > slack:
            raise ValueError(f"a {cell.kind} of rank {cell.rank} takes {cell.end - cell.start:g}, not its given time")
        enters_last = timeline.schedule == "dualpipe" and 2 * cell.micro_batch >= timeline.micro_batches
        if cell.direction != enters_last or (enters_last and cell.chunk == 0):
            raise ValueError(f"micro-batch {cell.micro_batch} runs in the wrong direction on rank {cell.rank}")


def _words(part: Part) -> str:
    return f"{part.kind} of micro-batch {part.micro_batch} on stage {part.stage}"
