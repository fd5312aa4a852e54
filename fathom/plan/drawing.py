"""A pipeline as text: a line for every rank, time from left to right."""

from collections.abc import Iterator
from itertools import groupby

from fathom.plan.timeline import Cell, Kind, Timeline

LETTERS: dict[Kind, str] = {"F": "F", "B": "B", "W": "W", "BW": "G", "FB": "X"}
MEANINGS: dict[Kind, str] = {
    "F": "forward",
    "B": "gradient of the inputs",
    "W": "gradient of the weights",
    "BW": "both gradients",
    "FB": "a forward overlapped with both gradients of another micro-batch",
}
IDLE = "·"
BACKGROUNDS: dict[Kind, tuple[int, int]] = {  # 256 colours of a terminal: chunk 0 and, paler, chunk 1
    "F": (25, 67),
    "B": (130, 173),
    "W": (29, 72),
    "BW": (94, 137),
    "FB": (96, 139),
}
WHITE = 231


def draw(timeline: Timeline, width: int = 100, color: bool = False) -> str:
    """The timeline at most `width` columns wide, with the bubble above and what the letters mean below.

    Numbers of micro-batches are shown where they fit. `color` adds terminal escapes.
    """
    label = len(f"rank {timeline.ranks - 1} ")
    scale = _columns_per_time(timeline, max(width - label, 1))
    lines = [_headline(timeline)]
    for rank in range(timeline.ranks):
        cells = [cell for cell in timeline.cells if cell.rank == rank]
        lines.append(f"rank {rank}".ljust(label) + _row(cells, scale, round(timeline.makespan * scale), color))
    return "\n".join([*lines, *_legend(timeline)]) + "\n"


def _headline(timeline: Timeline) -> str:
    idle = max(timeline.bubble)
    return (
        f"{timeline.schedule}, {timeline.ranks} ranks, {timeline.micro_batches} micro-batches: "
        f"a step takes {timeline.makespan:.4g}, of which a rank idles {idle:.4g} ({100 * timeline.bubble_share:.1f} %)"
    )


def _columns_per_time(timeline: Timeline, room: int) -> float:
    """As wide as fits, and whole columns for the shortest cell if it gets any."""
    shortest = min(cell.end - cell.start for cell in timeline.cells)
    columns = int(room * shortest / timeline.makespan)
    return columns / shortest if columns else room / timeline.makespan


def _row(cells: list[Cell], scale: float, columns: int, color: bool) -> str:
    texts, marks = [IDLE] * columns, [""] * columns
    for cell in cells:
        first, last = round(cell.start * scale), round(cell.end * scale)
        texts[first:last] = _label(cell, last - first)
        marks[first:last] = [f"48;5;{BACKGROUNDS[cell.kind][cell.chunk]};38;5;{WHITE}"] * (last - first)
    if not color:
        return "".join(texts)
    runs = groupby(zip(texts, marks, strict=True), key=lambda column: column[1])
    return "".join(_colored("".join(text for text, _ in run), mark) for mark, run in runs)


def _label(cell: Cell, columns: int) -> str:
    """The letter and the micro-batch, or the letter alone, small for chunk 1; then blanks to the cell's end."""
    letter, text = LETTERS[cell.kind], f"{LETTERS[cell.kind]}{cell.micro_batch}"
    if cell.kind == "FB":
        text = f"F{cell.micro_batch}g{cell.partner}"
    fitting = text if len(text) <= columns else letter
    return (fitting.swapcase() if cell.chunk else fitting).ljust(columns)[:columns]


def _colored(text: str, mark: str) -> str:
    return f"\x1b[{mark}m{text}\x1b[0m" if mark else text


def _legend(timeline: Timeline) -> Iterator[str]:
    present = {cell.kind for cell in timeline.cells}
    yield ""
    yield from (f"{LETTERS[kind]}  {meaning}" for kind, meaning in MEANINGS.items() if kind in present)
    if any(cell.chunk for cell in timeline.cells):
        which = "micro-batches from the last rank" if timeline.schedule == "dualpipe" else "each rank's second stage"
        yield f"small letters: {which}"
