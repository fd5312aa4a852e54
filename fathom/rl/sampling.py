"""One round of sampling: finished answers are graded while others are still drawn, and the slowest may be cut."""

import math
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from fathom.infer.engine import Engine
from fathom.infer.request import Piece, Request

R = TypeVar("R")
Key = tuple[int, int]  # of an answer: its request's place in the round, its sample


@dataclass(frozen=True)
class Answer:
    """All that was drawn of one sample."""

    pieces: Sequence[Piece]  # in the order they came
    cut: bool = False  # ended because nearly all others were finished

    @property
    def whole(self) -> Piece:
        """One piece of all tokens; of an answer that was cut the finish is "length"."""
        first, *more = self.pieces
        if not more and not self.cut:
            return first
        return replace(
            self.pieces[-1],
            tokens=[token for piece in self.pieces for token in piece.tokens],
            logprobs=[logprob for piece in self.pieces for logprob in piece.logprobs],
            finish="length" if self.cut else self.pieces[-1].finish,
        )


@dataclass(frozen=True)
class Sampled(Generic[R]):
    """What `handle` made of the answers to each request, in the order of requests and samples."""

    results: list[list[R]]
    cut: int  # answers that were ended before their time
    unbegun: int  # answers without a first token by then: they are in no list


def sample_round(
    engine: Engine,
    requests: Sequence[Request],
    handle: Callable[[int, Answer], R],
    finish_share: float = 1.0,
    threads: int = 1,
) -> Sampled[R]:
    """Draw all answers and give each, with its request's place, to `handle` as soon as it is finished.

    `handle` runs in `threads` threads beside the sampling, so that a checker which waits for a child process costs no
    time of its own; what it raises is raised here. Once `finish_share` of the answers are finished the rest is cut.
    The answers are those of `Engine.generate`, whatever their checks take.
    """
    total = sum(request.n for request in requests)
    enough = math.ceil(finish_share * total)
    pieces: dict[Key, list[Piece]] = {}
    found: dict[Key, Future[R]] = {}
    with _pool(threads) as pool, _emptied(engine):
        places = {engine.submit(request, stream=finish_share < 1): place for place, request in enumerate(requests)}
        while engine.busy and len(found) < enough:
            for piece in engine.step():
                key = places[piece.request], piece.sample
                pieces.setdefault(key, []).append(piece)
                if piece.finish:
                    found[key] = pool.submit(handle, key[0], Answer(pieces[key]))
        late = [key for key in pieces if key not in found]
        unbegun = total - len(pieces)
        found |= {key: pool.submit(handle, key[0], Answer(pieces[key], cut=True)) for key in late}
        engine.clear()  # before the last checks, so that the engine does not wait for them
        results: list[list[R]] = [[] for _ in requests]
        for key in sorted(found):
            results[key[0]].append(found[key].result())
    return Sampled(results, len(late), unbegun)


@contextmanager
def _pool(threads: int) -> Generator[ThreadPoolExecutor]:
    """Threads that do not begin what nobody waits for any more."""
    pool = ThreadPoolExecutor(threads, "grader")
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _emptied(engine: Engine) -> Generator[None]:
    """Leave nothing in flight, whatever happens."""
    try:
        yield
    finally:
        engine.clear()
