"""Who is let in: the server's state between the routes and the engine's thread."""

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from fathom.infer.engine import Engine
from fathom.infer.request import Piece, Request
from fathom.infer.scores import Scores
from fathom.infer.speaker import Speaker
from fathom.serve.asking import Limits, refusals
from fathom.serve.errors import ApiError
from fathom.serve.grammar import Grammars
from fathom.serve.loop import EngineDied, EngineLoop, Flight, Mailbox
from fathom.serve.metrics import Metrics
from fathom.serve.options import ServeOptions
from fathom.serve.room import open_engine

LONGEST_RETRY_S = 60
T = TypeVar("T")


@dataclass(eq=False)
class Visit:
    """A client who was let in: its requests in the engine, and when what happened (seconds, monotonic)."""

    box: Mailbox
    samples: int
    prompt_tokens: int
    began: float
    flights: list[Flight] = field(default_factory=list[Flight])
    newest: float | None = None  # when its newest piece came
    drawn: int = 0  # tokens


class Desk:
    """Admits requests to the engine, counts them, and refuses those it cannot serve soon."""

    def __init__(self, speaker: Speaker, options: ServeOptions, name: str, metrics: Metrics | None = None) -> None:
        model = speaker.model
        self.speaker, self.options, self.name = speaker, options, name
        self._engine = open_engine(model, options)
        self.limits = Limits(self._engine.longest, options.default_max_tokens, options.choices)
        self.loop = EngineLoop(self._engine)
        self.grammars = Grammars(speaker)
        self.metrics = metrics or Metrics(name)
        self.version = 0  # of the weights
        self.started = int(time.time())
        self.draining = False
        self.samples = 0  # in the engine, waiting ones too
        self._visits: set[Visit] = set()
        self._pace_s = 1.0  # seconds between two samples that finish, smoothed
        self._last_end = 0.0
        self._watch()

    @property
    def waiting(self) -> int:
        """Samples that no row has room for."""
        return max(0, self.samples - self.options.rows)

    async def admit(self, requests: Sequence[Request], stream: bool, scored: int = 0) -> Visit:
        """Give a client's requests to the engine, or raise the ApiError that says why not, or when to come again.

        `scored` are tokens of prompts that nothing is to follow.
        """
        self.require_open()
        samples = sum(request.n for request in requests)
        self._require_room(samples)
        prompts = scored + sum(len(request.prompt) for request in requests)
        visit = Visit(Mailbox(samples), samples, prompts, time.monotonic())
        self.samples += samples
        self._visits.add(visit)
        try:
            with refusals():
                for place, request in enumerate(requests):
                    visit.flights.append(await self.loop.submit(request, stream, visit.box, place))
        except BaseException as error:
            self.leave(visit)
            if isinstance(error, EngineDied):
                raise engine_dead(error) from error
            raise
        self.metrics.prompt_tokens.inc(prompts)
        return visit

    async def score(self, prompts: Sequence[Sequence[int]], likeliest: int) -> list[Scores]:
        """How likely each prompt's tokens are; one prompt is read between two steps, so that nobody waits for all."""
        self.require_open()
        self._require_room(len(prompts))
        self.samples += len(prompts)
        try:
            return [await self.ask_engine(lambda engine, ids=ids: engine.score(ids, likeliest)) for ids in prompts]
        finally:
            self.samples -= len(prompts)

    def require_open(self) -> None:
        """Raise ApiError unless requests are served."""
        if not self.loop.alive:
            raise engine_dead(self.loop.failure or "it was stopped")
        if self.draining:
            self.metrics.rejected("draining")
            raise ApiError(503, "the server is shutting down", code="draining", retry_after_s=10)

    async def news(self, visit: Visit, timeout_s: float | None = None) -> list[tuple[int, Piece]]:
        """The newest pieces of a visit with their requests' places; an ApiError where it failed."""
        try:
            pieces = await visit.box.news(timeout_s)
        except EngineDied as error:
            raise engine_dead(error) from error
        now = time.monotonic()
        for _, piece in pieces:
            self._count(visit, piece, now)
        for _, piece in pieces:
            if piece.finish == "error":
                raise ApiError(500, f"the completion failed: {piece.error}", code="completion_failed")
        return pieces

    def leave(self, visit: Visit) -> None:
        """A visit is over; what the engine still writes for it is cancelled."""
        if visit not in self._visits:
            return
        self._visits.remove(visit)
        self.samples -= visit.samples
        if visit.box.unfinished:
            self.metrics.cancelled.inc()
            self.metrics.finished("abort", visit.box.unfinished)
            for flight in visit.flights:
                self.loop.cancel(flight)
        elif visit.drawn:
            now = time.monotonic()
            self.metrics.whole.observe(now - visit.began)
            self.metrics.per_token.observe((now - visit.began) / visit.drawn)
            since = max(visit.began, self._last_end)
            self._pace_s, self._last_end = 0.8 * self._pace_s + 0.2 * (now - since) / visit.samples, now

    async def ask_engine(self, job: Callable[[Engine], T]) -> T:
        """Do something with the engine between two steps; ApiError 503 where there is none."""
        try:
            return await self.loop.call(job)
        except EngineDied as error:
            raise engine_dead(error) from error

    async def drain(self, seconds: float) -> None:
        """Let nobody in any more and wait for those inside; after `seconds` the rest fail."""
        self.draining = True
        deadline = time.monotonic() + seconds
        while self._visits and time.monotonic() < deadline and self.loop.alive:
            await asyncio.sleep(0.02)
        if self._visits:
            await self.loop.stop()

    def _require_room(self, samples: int) -> None:
        most = self.options.rows + self.options.queue
        if self.samples and self.samples + samples > most:
            self.metrics.rejected("queue_full")
            raise ApiError(
                429,
                f"{self.samples} completions are being written or wait, and {samples} more exceed the {most} that "
                "this server takes; try again later",
                code="queue_full",
                retry_after_s=min(LONGEST_RETRY_S, max(1, math.ceil(self._pace_s * self.waiting))),
            )

    def _count(self, visit: Visit, piece: Piece, now: float) -> None:
        tokens = len(piece.tokens)
        self.metrics.generation_tokens.inc(tokens)
        if visit.newest is None:  # of an answer that comes whole the engine knows when it began
            first = now - visit.began if piece.finish is None else sum(piece.timing)
            self.metrics.first_token.observe(first)
        elif tokens:
            self.metrics.inter_token.observe((now - visit.newest) / tokens)
        visit.drawn, visit.newest = visit.drawn + tokens, now
        if piece.finish:
            self.metrics.finished(piece.finish)
            self.metrics.timed(piece.timing, now - visit.began)

    def _watch(self) -> None:
        watch, engine = self.metrics.watch, self._engine
        watch("num_requests_running", "Samples in the engine's rows", lambda: self.samples - self.waiting)
        watch("num_requests_waiting", "Samples that wait for a row", lambda: self.waiting)
        watch("weights_version", "Of the weights being served", lambda: self.version)
        watch("spec_decode_draft_acceptance_rate", "Share of the drafts kept", lambda: engine.acceptance)
        watch("spec_decode_tokens_per_step", "Tokens a row gains a step", lambda: engine.tokens_per_step)
        self.metrics.count(engine)


def engine_dead(reason: object) -> ApiError:
    """The answer while no engine runs."""
    return ApiError(503, f"the engine is not running: {reason}", code="engine_dead", retry_after_s=10)
