"""Who waits, when they are let in, and how much of long prompts is read at a time."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace

from fathom.infer.request import Request

ADMISSION_SHARE = 8  # a prompt pass is worth its cost once one row in so many is free
SHORT_PASS = 512  # tokens of a prompt pass up to which a GPU reads them as it decodes, by a graph
PREFILL_TOKENS = 1 << 14  # of one prompt pass, padding included: bounds its memory


@dataclass(frozen=True)
class Admission:
    """Samples of one request that are decoded together, each in a row of its own."""

    request_id: int
    request: Request
    samples: tuple[int, ...]
    streams: bool  # tokens are handed out as they are drawn

    def without(self, request_id: int, sample: int | None) -> "Admission | None":
        """What is left where one sample of a request is cancelled, or all of them (None); None where that is nobody."""
        if self.request_id != request_id:
            return self
        left = () if sample is None else tuple(each for each in self.samples if each != sample)
        return replace(self, samples=left) if left else None


class Queue:
    """Requests in the order of their arrival. Samples of one enter together, as many as there are rows at most."""

    def __init__(self, rows: int) -> None:
        self._rows = rows
        self._waiting: deque[Admission] = deque()
        self._samples = 0  # that wait

    def put(self, request_id: int, request: Request, streams: bool, together: int | None = None) -> None:
        """Append a request, of which so many samples may enter together."""
        together = min(together or self._rows, self._rows)
        for first in range(0, request.n, together):
            samples = tuple(range(first, min(first + together, request.n)))
            self._waiting.append(Admission(request_id, request, samples, streams))
        self._samples += request.n

    def remove(self, request_id: int, sample: int | None = None) -> None:
        """Let nobody of a request in any more, or not this sample of it."""
        left = (each.without(request_id, sample) for each in self._waiting)
        self._waiting = deque(each for each in left if each)
        self._samples = sum(len(each.samples) for each in self._waiting)

    @property
    def first(self) -> Admission | None:
        """Who is the next to enter."""
        return self._waiting[0] if self._waiting else None

    def pop(self) -> Admission:
        """Let the next in."""
        self._samples -= len(self._waiting[0].samples)
        return self._waiting.popleft()

    def put_back(self, admission: Admission) -> None:
        """Let somebody who came in wait again, in front of all others."""
        self._waiting.appendleft(admission)
        self._samples += len(admission.samples)

    def take(self, free: int) -> list[Admission]:
        """Those who enter `free` rows now, in one prompt pass: nobody while too few rows are free to be worth it."""
        taken: list[Admission] = []
        if free < min(self._samples, max(1, self._rows // ADMISSION_SHARE)):
            return taken
        width = 0
        while self._waiting and len(self._waiting[0].samples) <= free:
            width = max(width, len(self._waiting[0].request.prompt))
            if taken and width * (len(taken) + 1) > PREFILL_TOKENS:
                break
            taken.append(self._waiting.popleft())
            free -= len(taken[-1].samples)
            self._samples -= len(taken[-1].samples)
        return taken


def share_budget(rests: Sequence[int], budget: int) -> list[int]:
    """How much of each text to read now, the oldest first, given what is left of them and a budget in tokens.

    Half belongs to the oldest, so that it ends, and half to the shortest of the others, so that nobody waits long
    behind a long text; what one half does not need goes to the other.
    """
    if not rests:
        return []
    shares = [0] * len(rests)
    left = budget - min(rests[0], budget // 2)
    for number in sorted(range(1, len(rests)), key=rests.__getitem__):
        shares[number] = min(rests[number], left)
        left -= shares[number]
    shares[0] = min(rests[0], budget - sum(shares))
    return shares


def group_alike(shares: Sequence[int]) -> list[list[int]]:
    """Which texts are read in one pass, where each is padded to the longest: never more than half of it is padding."""
    order = sorted((number for number, share in enumerate(shares) if share), key=lambda number: -shares[number])
    groups: list[list[int]] = []
    for number in order:
        if groups and 2 * shares[number] >= shares[groups[-1][0]]:
            groups[-1].append(number)
        else:
            groups.append([number])
    return groups
