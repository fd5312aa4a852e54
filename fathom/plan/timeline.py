"""When each rank of a pipeline does what: the records that a simulation fills, and what must precede what."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

Kind = Literal["F", "B", "W", "BW", "FB"]


@dataclass(frozen=True, kw_only=True)
class Times:
    """How long one chunk takes for one micro-batch, in any one unit (V3 3.2.1).

    The reports write B for the whole backward, here `B + W`. A chunk is one stage, so a schedule with two stages a
    rank has chunks half as large as one with a single stage on as many ranks.
    """

    F: float = 1.0  # forward
    B: float = 1.0  # gradient of the inputs
    W: float = 1.0  # gradient of the weights
    FB: float | None = None  # a forward overlapped with the whole backward of another; None: nothing is saved

    def __post_init__(self) -> None:
        given = {"F": self.F, "B": self.B, "W": self.W, "FB": self.overlapped}
        for name, time in given.items():
            if not 0 < time < float("inf"):
                raise ValueError(f"time {name}={time:g} is not a duration; give a number above 0")

    @property
    def overlapped(self) -> float:
        """The time of an overlapped pair, F&B in the reports."""
        return self.F + self.B + self.W if self.FB is None else self.FB

    def of(self, kind: Kind) -> float:
        """The time of one cell."""
        return {"F": self.F, "B": self.B, "W": self.W, "BW": self.B + self.W, "FB": self.overlapped}[kind]


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One thing a rank does in its order.

    Kinds: F forward, B gradient of the inputs, W gradient of the weights, BW both gradients at once, FB a forward
    overlapped with both gradients of `partner`, a micro-batch that runs backward through the rank's other chunk.
    """

    kind: Kind
    micro_batch: int
    chunk: int  # 0 or 1: which of the rank's stages
    partner: int | None = None
    phase: int = 0  # DualPipe and DualPipeV: 1 to 8


class Part(NamedTuple):
    """One pass of one micro-batch through one stage."""

    kind: Literal["F", "B", "W"]
    stage: int
    micro_batch: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """A step of `rank` from `start` to `end`; the other fields as in `Step`."""

    rank: int
    start: float
    end: float
    kind: Kind
    micro_batch: int
    chunk: int
    direction: int  # 0 enters at rank 0, 1 enters at the last rank (DualPipe only)
    partner: int | None = None


@dataclass(frozen=True, kw_only=True)
class Timeline:
    """A schedule played out: every cell of every rank."""

    schedule: str
    ranks: int
    micro_batches: int
    times: Times
    cells: Sequence[Cell]

    @cached_property
    def makespan(self) -> float:
        """From the first start to the last end."""
        return max(cell.end for cell in self.cells)

    @cached_property
    def bubble(self) -> tuple[float, ...]:
        """The idle time of each rank within the makespan."""
        busy = [0.0] * self.ranks
        for cell in self.cells:
            busy[cell.rank] += cell.end - cell.start
        return tuple(self.makespan - time for time in busy)

    @property
    def bubble_share(self) -> float:
        """The idle share of all ranks' time."""
        return sum(self.bubble) / (self.ranks * self.makespan)

    @cached_property
    def peak_activations(self) -> tuple[int, ...]:
        """Chunks of activations each rank holds at most: kept from a forward until its weights have their gradient."""
        changes: list[list[tuple[float, int]]] = [[] for _ in range(self.ranks)]
        for cell in self.cells:
            if "F" in cell.kind:
                changes[cell.rank].append((cell.start, 1))
            if cell.kind in ("W", "BW", "FB"):
                changes[cell.rank].append((cell.end, -1))
        return tuple(_highest_sum(sorted(of_rank)) for of_rank in changes)


def stage_of(schedule: str, ranks: int, rank: int, chunk: int) -> int:
    """The stage a rank's chunk is: along the ranks, and for chunk 1 back again."""
    if chunk == 0:
        return rank
    return ranks - 1 - rank if schedule == "dualpipe" else 2 * ranks - 1 - rank


def stages_of(schedule: str, ranks: int) -> int:
    """Stages the model is cut into: DualPipe keeps each one twice, the V schedules give each rank two."""
    return 2 * ranks if schedule in ("zbv", "dualpipev") else ranks


def parts_of(schedule: str, ranks: int, rank: int, step: Step | Cell) -> Iterator[Part]:
    """The passes that a step of `rank` consists of."""
    stage = stage_of(schedule, ranks, rank, step.chunk)
    match step.kind:
        case "FB":
            assert step.partner is not None
            other = stage_of(schedule, ranks, rank, 1 - step.chunk)
            yield Part("F", stage, step.micro_batch)
            yield Part("B", other, step.partner)
            yield Part("W", other, step.partner)
        case "BW":
            yield Part("B", stage, step.micro_batch)
            yield Part("W", stage, step.micro_batch)
        case kind:
            yield Part(kind, stage, step.micro_batch)


def needs(part: Part, stages: int) -> Iterator[Part]:
    """The passes that must have ended before this one starts."""
    match part.kind:
        case "F" if part.stage > 0:
            yield Part("F", part.stage - 1, part.micro_batch)
        case "B":
            yield Part("F", part.stage, part.micro_batch)
            if part.stage < stages - 1:
                yield Part("B", part.stage + 1, part.micro_batch)
        case "W":
            yield Part("B", part.stage, part.micro_batch)
        case _:
            pass


def _highest_sum(changes: Sequence[tuple[float, int]]) -> int:
    held = highest = 0
    for _, change in changes:  # at the same moment the release sorts before the new one
        held += change
        highest = max(highest, held)
    return highest
