"""The order in which each rank of a pipeline works, one function per schedule.

An order is written as tokens and numbered afterwards. `F0` is the next forward of chunk 0, `B1` the next gradient of
the inputs of chunk 1, `W` the oldest gradient of weights still owed, `BW0` both gradients at once, `F0B1` a forward
and both gradients overlapped.
"""

from collections import Counter, deque
from collections.abc import Sequence
from typing import cast

from fathom.plan.timeline import Kind, Step


def one_forward_one_backward(ranks: int, micro_batches: int, rank: int) -> list[Step]:
    """1F1B: fill, then one forward and one backward in turn, then drain."""
    ahead = ranks - 1 - rank
    tokens = ["F0"] * ahead + ["F0", "BW0"] * (micro_batches - ahead) + ["BW0"] * ahead
    return _number([tokens])


def zero_bubble(ranks: int, micro_batches: int, rank: int) -> list[Step]:
    """ZB1P (ZB-H1): 1F1B whose gradients of weights wait, the later the rank the longer, and fill the drain."""
    ahead = ranks - 1 - rank
    tokens = ["F0"] * ahead
    for turn in range(micro_batches - ahead):
        tokens += ["F0", "B0"] + ["W"] * (turn >= rank)
    owed = min(rank, micro_batches - ahead)
    return _number([tokens + ["B0", "W"] * ahead + ["W"] * owed])


def zero_bubble_v(ranks: int, micro_batches: int, rank: int) -> list[Step]:
    """ZBV: two stages a rank laid out as a V, so that the last stage is beside the first."""
    after, before = ranks - rank, rank
    tokens = ["F0"] * (2 * after - 1) + ["F1", "F0"] * before + ["F1", "B1", "W"] * after
    left = micro_batches - tokens.count("F0")
    for turn in range(micro_batches - ranks):
        tokens += ["F0"] * (turn < left) + ["B0", "W", "F1", "B1", "W"]
    return _number([tokens + ["B0", "B1"] * before + ["B0", "W"] * after + ["W"] * (2 * before)])


def dualpipe_order(ranks: int, micro_batches: int, rank: int) -> list[Step]:
    """DualPipe (V3 3.2.1): half of the micro-batches enter at each end, and meet as overlapped pairs.

    Chunk 0 is the rank's stage for micro-batches from rank 0, chunk 1 for those from the last rank. The two halves of
    the pipeline mirror each other.
    """
    half = micro_batches // 2
    mirrored = rank >= ranks // 2
    return _two_way(ranks // 2, half, min(rank, ranks - 1 - rank), (half, 0) if mirrored else (0, half), mirrored)


def dualpipe_v_order(ranks: int, micro_batches: int, rank: int) -> list[Step]:
    """DualPipeV: one half of DualPipe, folded, so that no stage is kept twice."""
    return _two_way(ranks, micro_batches, rank, (0, 0), False)


def _two_way(ranks: int, micro_batches: int, rank: int, first: tuple[int, int], mirrored: bool) -> list[Step]:
    """The eight phases; chunk 0 is the one whose micro-batches reach this rank first."""
    after, upto = ranks - rank - 1, rank + 1
    paired = ["F0B1", "F1B0"] * (micro_batches - 2 * ranks + upto)
    if after == 0:  # where the two meet, the first pair's backward needs its forward
        paired[:1] = ["F0", "BW1"]
    last = ["BW1", "BW0"] * upto
    last[upto:] = [token.replace("BW", "B") for token in last[upto:]]
    phases = [
        ["F0"] * (2 * after),
        ["F0", "F1"] * upto,
        ["B1", "W", "F1"] * after,
        paired,
        ["BW1", "F1B0"] * after,
        last,
        ["W", "B0"] * after,
        ["W"] * upto,
    ]
    return _number(phases, first, mirrored)


def _number(phases: Sequence[Sequence[str]], first: tuple[int, int] = (0, 0), mirrored: bool = False) -> list[Step]:
    """Tokens to steps: passes of a chunk take micro-batches in turn, counted from `first`."""
    passes: Counter[str] = Counter()
    owed: deque[tuple[int, int]] = deque()

    def take(name: str) -> tuple[int, int]:
        chunk = int(name[-1])
        passes[name] += 1
        return first[chunk] + passes[name] - 1, chunk

    steps: list[Step] = []
    for phase, tokens in enumerate(phases, start=1):
        for token in tokens:
            partner = None
            match token:
                case "W":
                    kind, (micro_batch, chunk) = "W", owed.popleft()
                case "F0B1" | "F1B0":
                    kind, (micro_batch, chunk), (partner, _) = "FB", take(token[:2]), take(token[2:])
                case _:
                    kind, (micro_batch, chunk) = token[:-1], take(token[0] + token[-1])
                    if kind == "B":
                        owed.append((micro_batch, chunk))
            steps.append(
                Step(
                    kind=cast(Kind, kind),
                    micro_batch=micro_batch,
                    chunk=1 - chunk if mirrored else chunk,
                    partner=partner,
                    phase=phase if len(phases) > 1 else 0,
                )
            )
    assert not owed, "a gradient of weights was never taken"
    return steps
