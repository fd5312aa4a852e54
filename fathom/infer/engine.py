"""The engine: requests in, pieces out, one decoding step at a time for as many rows as are active."""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from time import monotonic
from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor

from fathom.infer.check import check_drafts, check_experts, check_latents, check_request
from fathom.infer.fp8 import compare_fp8
from fathom.infer.int8 import compare_int8
from fathom.infer.paging import Counters, Paging
from fathom.infer.request import Piece, Request, Timing
from fathom.infer.runner import Runner
from fathom.infer.scheduler import Admission, Queue
from fathom.infer.scores import Scores, score
from fathom.infer.speculation import most_drafts
from fathom.infer.tables import lay_tables
from fathom.infer.verify import Rule
from fathom.model import Transformer

log = logging.getLogger(__name__)

STEP_TOKENS = (2048, 8192)  # of a step on a CPU and on a GPU
FIRST_CAPACITY = 64  # tokens a row holds before it first grows


class Engine:
    """Continuous batching: finished rows leave at once and waiting prompts take their places.

    `rows` sequences are decoded together. A row holds `capacity` tokens, prompt and completion together; without one
    rows grow as requests need, up to the model's max_position_embeddings. Weights may change between calls while
    nothing is in flight; with `swap_weights` also while rows are, and pieces name their version.

    With `drafts` MTP modules draft so many tokens ahead in every step (True is 1), or as many as are measured to pay,
    "auto". `verify` says how drafts are judged. "coupled" leaves every text as it is without drafts. "ratio" keeps more
    of them and the law of every text, but not the very text that a seed gives; "greedy" does the same with the
    likeliest tokens as drafts. At temperature 0 the three are one.

    With `pages` rows share a pool of so many pages of `page_size` tokens and hold what their texts fill, so that there
    can be more rows than would fit at full length. A step runs about `step_tokens` at most: long prompts are read by
    chunks. Full pages of earlier texts are found again unless `prefix_cache` is off, so such an engine must be told of
    changed weights by `swap_weights`. By default a GPU has as many pages as fit, and a CPU, where a row in one stretch
    is read faster, has none; 0 asks for none. On a GPU rows draw up to `BURST` tokens between two looks of the host,
    by CUDA graphs unless `graphs` is off. With `invariant` texts there do not depend on their neighbours to the last
    bit, which takes two rows at least. With `int8`, on a CPU, prompts are read in float32 and what follows them with
    weights rounded to bytes; how far that leads is measured now and logged. With `latents` "fp8" pages hold latents
    in FP8, a little over half the bytes of BF16, and what that changes is measured and logged, too. Requests that
    stream hand out their tokens at every step, or after `stream_s` seconds those of all steps since: pieces cost
    the host more than small models do.
    """

    def __init__(
        self,
        model: Transformer,
        rows: int,
        capacity: int | None = None,
        drafts: int | Literal["auto"] = 0,
        verify: Rule = "coupled",
        pages: int | None = None,
        page_size: int = 64,
        step_tokens: int | None = None,
        prefix_cache: bool = True,
        graphs: bool = True,
        invariant: bool = False,
        int8: bool = False,
        stream_s: float = 0.0,
        latents: Literal["fp8"] | None = None,
    ) -> None:
        limit = model.config.max_position_embeddings
        if rows < 1:
            raise ValueError(f"rows={rows} decodes nothing; give 1 or more")
        if capacity is not None and not 2 <= capacity <= limit:
            raise ValueError(f"capacity={capacity} is outside 2..{limit}, the model's max_position_embeddings")
        check_drafts(drafts, verify, len(model.mtp))
        check_latents(latents)
        if step_tokens is None:
            step_tokens = STEP_TOKENS[model.embedding.weight.device.type == "cuda"]
        for name, value in (("page_size", page_size), ("step_tokens", step_tokens)):
            if value < 1:
                raise ValueError(f"{name}={value} holds no token; give 1 or more")
        rows = max(rows, 2) if invariant else rows
        self._capacity = limit if capacity is None else capacity
        self._invariant = invariant
        self._vocab_size = model.config.vocab_size
        fp8 = latents == "fp8"
        tables = lay_tables(model, rows, self._capacity, most_drafts(drafts), pages, page_size, prefix_cache, fp8)
        first = capacity or min(FIRST_CAPACITY, limit)
        self._runner = Runner(model, rows, first, drafts, verify, tables, graphs, invariant, int8)
        if int8:
            log.info("decoding with weights in int8: %s", compare_int8(model))
        if fp8:
            log.info("decoding with latents in FP8: %s", compare_fp8(model))
        self._paging = Paging(self._runner, tables, step_tokens) if tables else None
        self._queue = Queue(rows)
        self._open: dict[int, set[int]] = {}  # samples of each request in flight that are not finished
        self._next_id = 0
        self._stream_s, self._streamed = stream_s, 0.0  # and when the rows that stream were last looked at

    @property
    def busy(self) -> bool:
        """Whether a request is in flight."""
        return bool(self._open)

    @property
    def version(self) -> int:
        """Of the weights: 0 until they are swapped."""
        return self._runner.version

    @property
    def verdicts(self) -> tuple[list[int], list[int]]:
        """Drafts checked so far and drafts kept, both by their place in a step; empty without drafts."""
        if self._runner.speculation is None:
            return [], []
        checked, kept = self._runner.speculation.verdicts.tolist()
        return checked, kept

    @property
    def acceptance(self) -> float:
        """Share of the drafts so far that were kept, of those that were checked; 0 without drafts."""
        checked, kept = self.verdicts
        return sum(kept) / max(sum(checked), 1)

    @property
    def draft_counts(self) -> tuple[int, int]:
        """Drafts checked and drafts kept so far; 0 without drafts."""
        checked, kept = self.verdicts
        return sum(checked), sum(kept)

    @property
    def acceptance_by_position(self) -> list[float]:
        """The same for the first, second and further drafts of a step; those behind a rejected one are not checked."""
        return [kept / checked for checked, kept in zip(*self.verdicts, strict=True) if checked]

    @property
    def row_steps(self) -> int:
        """Steps so far, each counted once for every row that was in it."""
        return self._runner.row_steps

    @property
    def decoded(self) -> int:
        """Tokens drawn so far, but for the first of each completion, which the pass over its prompt gives."""
        return self._runner.row_steps + sum(self.verdicts[1])

    @property
    def tokens_per_step(self) -> float:
        """Tokens that a row gained per decoding step so far; 1 without drafts."""
        return 1 + sum(self.verdicts[1]) / max(self._runner.row_steps, 1)

    @property
    def longest(self) -> int:
        """Tokens of a prompt and its completion, together, that the engine can hold."""
        return min(self._capacity, self._paging.longest) if self._paging else self._capacity

    @property
    def counters(self) -> Counters:
        """Of pages and prefixes; all 0 without pages."""
        return self._paging.counters if self._paging else Counters()

    @torch.inference_mode()
    def submit(self, request: Request, stream: bool = False) -> int:
        """Queue a request and return the id that its pieces carry; with `stream` they come with every step.

        Raises ValueError for a request that this engine cannot serve; see `check_request`.
        """
        check_request(request, self._vocab_size, self._capacity)
        check_experts(request, self._runner.moe_layers, self._invariant)
        if self._paging:
            self._paging.check(request)
        if not self.busy:
            self._runner.weights_may_differ()
        self._make_room(request)
        request_id, self._next_id = self._next_id, self._next_id + 1
        self._open[request_id] = set(range(request.n))
        self._queue.put(request_id, request, stream, self._paging and self._paging.together(request))
        return request_id

    @torch.inference_mode()
    def step(self) -> list[Piece]:
        """Let waiting requests in, draw the next token of every active row, and return the pieces that are ready."""
        if self._paging:
            return self._step_by_pages(self._paging)
        pieces: list[Piece] = []
        rows = self._runner.rows
        while admissions := self._queue.take(rows.capacity - rows.count):
            self._read(admissions)
            pieces += self._collect()
        if rows.count:
            self._runner.decode()
            pieces += self._collect()
        return pieces

    def _read(self, admissions: Sequence[Admission]) -> None:
        """Give waiting requests their rows."""
        first, begun = self._runner.rows.count, monotonic()
        self._runner.prefill(admissions)
        waited = [begun - each.since for each in admissions for _ in each.samples]
        for tenant, seconds in zip(self._runner.rows.tenants[first:], waited, strict=True):
            tenant.timing = Timing(seconds, monotonic() - begun)

    def _step_by_pages(self, paging: Paging) -> list[Piece]:
        """Read a share of the waiting prompts, then draw; an engine that has nothing left to do looks at its pages."""
        was_busy = self.busy
        paging.admit(self._queue)
        paging.read()
        pieces = self._collect()
        if steps := paging.make_room(self._queue, self._runner.burst):
            self._runner.decode(steps)
            pieces += self._collect()
        if was_busy and not self.busy:
            paging.check_pages()
        return pieces

    def score(self, text: Sequence[int], likeliest: int = 0) -> Scores:
        """How likely the tokens of a text are, each behind those before it; rows in flight wait meanwhile."""
        return score(self._runner.model, text, likeliest)

    @torch.inference_mode()
    def cancel(self, request_id: int, sample: int | None = None) -> bool:
        """End a request between two steps, or one of its samples: rows and pages are free at once and no pieces come.

        Returns whether it was in flight. Raises ValueError for an id that `submit` did not return, and for a `sample`
        below 0; one that the request never had was not in flight.
        """
        if not 0 <= request_id < self._next_id:
            raise ValueError(f"request {request_id} was never submitted; give an id that submit() returned")
        if sample is not None and sample < 0:
            raise ValueError(f"sample={sample} is negative; samples of a request are counted from 0")
        left = self._open.get(request_id, set())
        if not left or (sample is not None and sample not in left):
            return False
        left.clear() if sample is None else left.remove(sample)
        if not left:
            del self._open[request_id]
        self._queue.remove(request_id, sample)
        if self._paging:
            self._paging.cancel(request_id, sample)
        rows = self._runner.rows
        mine = [each.request_id == request_id and sample in (None, each.sample) for each in rows.tenants]
        if any(mine):
            self._runner.drop(torch.tensor(mine, device=self._runner.device))
        return True

    @torch.inference_mode()
    def swap_weights(
        self,
        weights: Mapping[str, Tensor] | None = None,
        version: int | None = None,
        in_flight: Literal["refuse", "recompute", "continue"] = "refuse",
    ) -> int:
        """Go on with other weights between two steps; returns their version, one more than the last unless given.

        `weights` are copied over the model's by their names in its state_dict, all of them or none; without any the
        model's own tensors have been changed by somebody else. Rows in flight keep the tokens they drew. With
        "recompute" the new weights read these again, so that what follows is what the new weights say of them; with
        "continue" what the old weights wrote to the cache stays, which costs nothing. Waiting requests see the new
        weights alone. Raises ValueError where a name or shape is wrong, the version is no later one, or rows are in
        flight and `in_flight` is "refuse"; nothing has changed then.
        """
        if in_flight not in ("refuse", "recompute", "continue"):
            raise ValueError(f"in_flight={in_flight!r} is unknown; choose one of refuse, recompute, continue")
        version = self.version + 1 if version is None else version
        if version <= self.version:
            raise ValueError(f"version={version} is no later one than the present {self.version}; give a larger number")
        if in_flight == "refuse":
            self._require_idle()
        if weights is not None:
            self._runner.load(weights)
        self._runner.weights_may_differ()
        self._runner.version = version
        if self._paging:
            self._paging.restart(self._queue)
        if in_flight == "recompute" and self._runner.rows.count:
            self._paging.park_all() if self._paging else self._runner.reread()
        return version

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
        self._open.clear()
        self._runner.clear()
        if self._paging:
            self._paging.clear()

    def _make_room(self, request: Request) -> None:
        cache = self._runner.cache
        if not self._paging and request.places > cache.capacity:
            cache.grow(min(max(request.places, 2 * cache.capacity), self._capacity))
        self._runner.rows.reserve(request.sampling.max_tokens, len(request.stop_ids))
        if request.traced:
            self._runner.traces.reserve(request.sampling.max_tokens, request.top_logprobs)

    def _require_idle(self) -> None:
        if self.busy:
            raise ValueError(
                f"{len(self._open)} requests are in flight, whose pieces would be lost; finish them with step() "
                "or drop them with clear()"
            )

    def _collect(self) -> list[Piece]:
        """Pieces of the rows that finished or stream; finished rows leave."""
        rows = self._runner.rows
        finished = rows.finished()
        shown = (rows.fields().watched >= self._least_watched()).logical_or(finished).nonzero().flatten()
        if not len(shown):
            return []
        pieces = self._take_over(shown)
        ended = [row for row, piece in pieces if piece.finish]
        if ended:
            self._runner.drop(torch.zeros_like(finished).index_fill_(0, torch.tensor(ended, device=shown.device), True))
        return [piece for _, piece in pieces]

    def _least_watched(self) -> int:
        """Rows that are watched so much are looked at now."""
        now = monotonic()
        if now - self._streamed < self._stream_s:
            return 2
        self._streamed = now
        return 1

    def _take_over(self, shown: Int[Tensor, " K"]) -> list[tuple[int, Piece]]:
        """Give what rows `shown` drew since the last time to their tenants: rows, and the pieces that are due."""
        rows, pieces = self._runner.rows, list[tuple[int, Piece]]()
        index = shown.tolist()
        tenants = [rows.tenants[row] for row in index]
        news = [count - tenant.count for count, tenant in zip(rows.counts(shown), tenants, strict=True)]
        tokens, logprobs = rows.newest(shown, max(news))
        traces = self._runner.traces.read(shown, max(news)) if rows.traced else [None] * len(index)
        for row in index:
            self._runner.take_experts(row)
        for row, tenant, new, *drawn in zip(index, tenants, news, tokens, logprobs, traces, strict=True):
            if not new:  # a row that streams may have drawn nothing since: others came in
                continue
            finish = tenant.absorb(new, *drawn)
            due = tenant.streams or finish
            if due and (piece := tenant.piece(finish, self.version)):
                pieces.append((row, piece))
                if piece.finish:
                    self._close(piece.request, piece.sample)
        return pieces

    def _close(self, request_id: int, sample: int) -> None:
        """Note that a sample is finished."""
        self._open[request_id].remove(sample)
        if not self._open[request_id]:
            del self._open[request_id]
