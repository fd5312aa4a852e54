"""Who waits, and when they are let in."""

from collections import deque
from dataclasses import dataclass

from fathom.infer.request import Request

ADMISSION_SHARE = 8  # a prompt pass is worth its cost once one row in so many is free
PREFILL_TOKENS = 1 << 14  # of one prompt pass, padding included: bounds its memory


@dataclass(frozen=True)
class Admission:
    """Samples of one request that are decoded together, each in a row of its own."""

    request_id: int
    request: Request
    samples: range
    streams: bool  # tokens are handed out as they are drawn


class Queue:
    """Requests in the order of their arrival. Samples of one enter together, as many as there are rows at most."""

    def __init__(self, rows: int) -> None:
        self._rows = rows
        self._waiting: deque[Admission] = deque()
        self._samples = 0  # that wait

    def put(self, request_id: int, request: Request, streams: bool) -> None:
        """Append a request."""
        for first in range(0, request.n, self._rows):
            samples = range(first, min(first + self._rows, request.n))
            self._waiting.append(Admission(request_id, request, samples, streams))
        self._samples += request.n

    def remove(self, request_id: int) -> None:
        """Let nobody of a request in any more."""
        self._samples -= sum(len(each.samples) for each in self._waiting if each.request_id == request_id)
        self._waiting = deque(each for each in self._waiting if each.request_id != request_id)

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
