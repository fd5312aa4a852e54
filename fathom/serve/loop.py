"""The thread that owns the engine, and the bridge between it and the coroutines that answer clients."""

import asyncio
import contextlib
import logging
import math
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TypeVar

from fathom.infer.engine import Engine
from fathom.infer.request import Piece, Request

log = logging.getLogger(__name__)
R = TypeVar("R")


class EngineDied(RuntimeError):
    """The engine's thread ended with an error; nobody is served any more."""


class Mailbox:
    """Where the pieces of one client's requests arrive.

    The engine's thread puts them in; it wakes the coroutine only where that waits, so that a busy engine is not held up
    by clients who read now and then.
    """

    def __init__(self, samples: int) -> None:
        self.unfinished = samples  # whose last piece has not been put in
        self._pieces: deque[tuple[int, Piece]] = deque()
        self._failure: Exception | None = None
        self._coroutines = asyncio.get_running_loop()
        self._sleeper: asyncio.Future[None] | None = None
        self._waits = False  # set before the deque is looked at, which is looked at before it is slept on

    async def news(self, timeout_s: float | None = None) -> list[tuple[int, Piece]]:
        """Places of requests and their pieces since the last time, once there are any; none after `timeout_s`.

        Raises what ended the requests from outside: the engine's death, or a server that stops.
        """
        end = math.inf if timeout_s is None else self._coroutines.time() + timeout_s
        self._waits = True
        while not self._pieces and not self._failure and self._coroutines.time() < end:
            await self._sleep(end)
            self._waits = True
        self._waits = False
        if self._failure:
            raise self._failure
        return [self._pieces.popleft() for _ in range(len(self._pieces))]

    async def pause(self, period_s: float) -> None:
        """Let more tokens gather until the next whole multiple of `period_s`, unless there will be none.

        All clients wake together: a loop that is woken for each of them takes the interpreter from the engine as often.
        """
        end = (self._coroutines.time() // period_s + 1) * period_s
        while self.unfinished and not self._failure and self._coroutines.time() < end:
            await self._sleep(end)

    def put(self, place: int, piece: Piece) -> None:
        """Take a piece of the request at `place`; on the engine's thread."""
        self._pieces.append((place, piece))
        self.unfinished -= piece.finish is not None
        if self._waits or not self.unfinished:
            self._waits = False
            self._tell()

    def fail(self, error: Exception) -> None:
        """End with an error; on the engine's thread."""
        self._failure = error
        self._tell()

    def _tell(self) -> None:
        with contextlib.suppress(RuntimeError):  # the event loop is closed: nobody is left to be told
            self._coroutines.call_soon_threadsafe(self._wake)

    async def _sleep(self, end: float) -> None:
        """Until somebody wakes it, or the loop's clock shows `end`: a future and a timer, as wait_for makes a task."""
        self._sleeper = self._coroutines.create_future()
        timer = self._coroutines.call_at(end, self._wake) if end < math.inf else None
        try:
            await self._sleeper
        finally:
            if timer:
                timer.cancel()

    def _wake(self) -> None:
        if self._sleeper and not self._sleeper.done():
            self._sleeper.set_result(None)


@dataclass(eq=False)
class Flight:
    """One request in the engine."""

    request: Request
    box: Mailbox
    place: int  # among the client's requests
    id: int | None = None  # of the engine; None until it took the request
    left: int = 0  # samples that the engine has not finished


class EngineLoop:
    """Runs an engine in a thread of its own: nothing else calls the engine.

    What coroutines want done waits in an inbox that is emptied between two steps. An error of `step` ends the loop and
    all requests with it; errors of a single request end that one.
    """

    def __init__(self, engine: Engine) -> None:
        self.failure: Exception | None = None
        self._engine = engine
        self._inbox: deque[tuple[Future[object], Callable[[], object]]] = deque()
        self._work = threading.Event()
        self._stopped = self._ended = False
        self._flights: dict[int, Flight] = {}  # by the engine's ids; only its thread looks here
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    @property
    def alive(self) -> bool:
        """Whether requests are served."""
        return self._thread.is_alive() and not self._ended

    def start(self) -> None:
        """Begin to take requests."""
        self._thread.start()

    async def stop(self) -> None:
        """End the thread between two steps; requests in flight fail."""
        self._stopped = True
        self._work.set()
        await asyncio.to_thread(self._thread.join)

    async def call(self, job: Callable[[Engine], R]) -> R:
        """Do something with the engine between two steps."""
        return await asyncio.wrap_future(self._post(lambda: job(self._engine)))

    async def submit(self, request: Request, stream: bool, box: Mailbox, place: int = 0) -> Flight:
        """Give a request to the engine; ValueError where it refuses."""
        flight = Flight(request, box, place, left=request.n)

        def take() -> None:
            flight.id = self._engine.submit(request, stream)
            self._flights[flight.id] = flight

        try:
            await asyncio.wrap_future(self._post(take))
        except asyncio.CancelledError:
            self.cancel(flight)
            raise
        return flight

    def cancel(self, flight: Flight) -> None:
        """End a request before the next step."""

        def drop() -> None:
            if flight.id is not None and self._flights.pop(flight.id, None):
                self._engine.cancel(flight.id)

        if self.alive:
            self._post(drop)

    def _post(self, job: Callable[[], R]) -> Future[R]:
        future: Future[R] = Future()
        if not self.alive:
            future.set_exception(self._death())
            return future
        self._inbox.append((future, job))  # pyright: ignore[reportArgumentType]  (a future takes what its job returns)
        self._work.set()
        if not self.alive:  # it ended meanwhile and may have emptied its inbox before
            self._refuse_inbox()
        return future

    def _run(self) -> None:
        try:
            while not self._stopped:
                self._turn()
        except Exception as error:
            log.exception("the engine failed; no request is served any more")
            self.failure = error
        self._ended = True  # from here on nobody posts without emptying the inbox himself
        self._refuse_inbox()
        for flight in self._flights.values():
            flight.box.fail(self._death())
        self._flights.clear()

    def _turn(self) -> None:
        """Empty the inbox, then one step; waits where there is nothing to do."""
        if not self._engine.busy and not self._inbox:
            self._work.wait()
        self._work.clear()
        while self._inbox:
            _settle(*self._inbox.popleft())
        if self._engine.busy and not self._stopped:
            self._hand_out(self._engine.step())

    def _hand_out(self, pieces: list[Piece]) -> None:
        found = [(self._flights[piece.request], piece) for piece in pieces]
        for flight, piece in found:
            flight.left -= piece.finish is not None
            if not flight.left:
                self._flights.pop(piece.request, None)
            flight.box.put(flight.place, piece)

    def _refuse_inbox(self) -> None:
        with contextlib.suppress(IndexError):  # empty: two threads may be at it
            while True:
                future, _ = self._inbox.popleft()
                if future.set_running_or_notify_cancel():
                    future.set_exception(self._death())

    def _death(self) -> EngineDied:
        return EngineDied(str(self.failure or "the server is shutting down"))


def _settle(future: Future[object], job: Callable[[], object]) -> None:
    """Do a job and keep what became of it, unless nobody waits for it any more."""
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(job())
    except Exception as error:  # the caller's to judge
        future.set_exception(error)
