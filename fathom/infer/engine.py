"""The engine: requests in, pieces out, one decoding step at a time for as many rows as are active."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch

from fathom.infer.request import Piece, Request
from fathom.infer.runner import Runner
from fathom.infer.scheduler import Queue
from fathom.model import Transformer

FIRST_CAPACITY = 64  # tokens a row holds before it first grows


@dataclass
class _Flight:
    """A request between `submit` and its last piece."""

    request: Request
    sent: list[int]  # tokens handed out, by sample
    open: int  # samples that are not finished


class Engine:
    """Continuous batching: finished rows leave at once and waiting prompts take their places.

    `rows` sequences are decoded together. A row holds `capacity` tokens, prompt and completion together; without one
    rows grow as requests need, up to the model's max_position_embeddings. With `drafts` MTP module 0 drafts a token
    ahead, which leaves every text as it is. Weights may change between calls while nothing is in flight.
    """

    def __init__(self, model: Transformer, rows: int, capacity: int | None = None, drafts: bool = False) -> None:
        limit = model.config.max_position_embeddings
        if rows < 1:
            raise ValueError(f"rows={rows} decodes nothing; give 1 or more")
        if capacity is not None and not 2 <= capacity <= limit:
            raise ValueError(f"capacity={capacity} is outside 2..{limit}, the model's max_position_embeddings")
        if drafts and not model.mtp:
            raise ValueError("drafts need an MTP module, and this model has num_nextn_predict_layers=0; decode without")
        self._capacity = limit if capacity is None else capacity
        self._vocab_size = model.config.vocab_size
        self._runner = Runner(model, rows, capacity or min(FIRST_CAPACITY, limit), drafts)
        self._queue = Queue(rows)
        self._flights: dict[int, _Flight] = {}
        self._next_id = 0

    @property
    def busy(self) -> bool:
        """Whether a request is in flight."""
        return bool(self._flights)

    @property
    def acceptance(self) -> float:
        """Share of the drafts so far that were right; 0 without drafts."""
        checked, kept = self._runner.verdicts.tolist()
        return kept / max(checked, 1)

    @property
    def tokens_per_step(self) -> float:
        """Tokens that a row gained per decoding step so far; 1 without drafts."""
        return 1 + self._runner.verdicts[1].item() / max(self._runner.row_steps, 1)

    @torch.inference_mode()
    def submit(self, request: Request, stream: bool = False) -> int:
        """Queue a request and return the id that its pieces carry; with `stream` they come with every step.

        Raises ValueError for token ids outside the vocabulary and for a request that no row can hold.
        """
        self._check(request)
        self._make_room(request)
        request_id, self._next_id = self._next_id, self._next_id + 1
        self._flights[request_id] = _Flight(request, [0] * request.n, request.n)
        self._queue.put(request_id, request, stream)
        return request_id

    @torch.inference_mode()
    def step(self) -> list[Piece]:
        """Let waiting requests in, draw the next token of every active row, and return the pieces that are ready."""
        pieces: list[Piece] = []
        rows = self._runner.rows
        while admissions := self._queue.take(rows.capacity - rows.count):
            self._runner.prefill(admissions)
            pieces += self._collect()
        if rows.count:
            self._runner.decode()
            pieces += self._collect()
        return pieces

    def generate(self, requests: Iterable[Request]) -> list[list[Piece]]:
        """Complete all requests: for each, in their order, one piece per sample."""
        self._require_idle()
        try:
            found = {self.submit(request): list[Piece]() for request in requests}
            while self.busy:
                for piece in self.step():
                    found[piece.request].append(piece)
        finally:
            self.clear()
        return [sorted(pieces, key=lambda piece: piece.sample) for pieces in found.values()]

    def stream(self, request: Request) -> Iterator[Piece]:
        """Complete one request and yield its tokens as they are drawn; closing the iterator ends the request."""
        self._require_idle()
        try:
            self.submit(request, stream=True)
            while self.busy:
                yield from self.step()
        finally:
            self.clear()

    def clear(self) -> None:
        """Drop everything in flight."""
        self._queue = Queue(self._runner.rows.capacity)
        self._flights.clear()
        self._runner.clear()

    def _check(self, request: Request) -> None:
        prompt, sampling = request.prompt, request.sampling
        for name, ids in (("prompt", prompt), ("stop_ids", request.stop_ids)):
            strangers = [token for token in ids if not 0 <= token < self._vocab_size]
            if strangers:
                raise ValueError(
                    f"{name} holds token id {strangers[0]}, outside the model's vocabulary of {self._vocab_size}; "
                    "encode with the tokenizer that the model was trained with"
                )
        if request.places > self._capacity:
            raise ValueError(
                f"a prompt of {len(prompt)} tokens and max_tokens={sampling.max_tokens} need {request.places} places, "
                f"but a row holds {self._capacity}; shorten the prompt or lower max_tokens"
            )

    def _make_room(self, request: Request) -> None:
        cache = self._runner.cache
        if request.places > cache.capacity:
            cache.grow(min(max(request.places, 2 * cache.capacity), self._capacity))
        self._runner.rows.reserve(request.sampling.max_tokens, len(request.stop_ids))

    def _require_idle(self) -> None:
        if self.busy:
            raise ValueError(
                f"{len(self._flights)} requests are in flight, whose pieces would be lost; finish them with step() "
                "or drop them with clear()"
            )

    def _collect(self) -> list[Piece]:
        """Pieces of the rows that finished or stream; finished rows leave."""
        rows = self._runner.rows
        finished = rows.finished()
        shown = rows.fields().streams.logical_or(finished).nonzero().flatten()
        if not len(shown):
            return []
        ends = list(zip(*rows.progress(shown), strict=True))
        news = [count - self._flights[request].sent[sample] for request, sample, count in ends]
        tokens, logprobs = rows.newest(shown, max(news))
        pieces = [
            self._piece(*end, row_tokens[-new:], row_logprobs[-new:])
            for end, new, row_tokens, row_logprobs in zip(ends, news, tokens, logprobs, strict=True)
            if new  # a row that streams may have drawn nothing since: others came in
        ]
        if any(piece.finish for piece in pieces):
            self._runner.drop(finished)
        return pieces

    def _piece(self, request: int, sample: int, count: int, tokens: list[int], logprobs: list[float]) -> Piece:
        """The next piece of a sample that drew `count` tokens by now."""
        if not math.isfinite(sum(logprobs)):
            raise RuntimeError("the model's logits are not finite: its weights diverged; load an earlier checkpoint")
        flight = self._flights[request]
        flight.sent[sample] = count
        finish = flight.request.finish_after(tokens[-1], count)
        flight.open -= finish is not None
        if not flight.open:
            del self._flights[request]
        return Piece(request, sample, tokens, logprobs, finish)
