"""One sample in its row: what was drawn and not handed out yet, and why it ends."""

import math
from dataclasses import dataclass, field
from typing import NamedTuple

from fathom.infer.experts import Routing
from fathom.infer.mask import Mask
from fathom.infer.request import Details, Finish, Piece, Request
from fathom.infer.sampler import Law
from fathom.infer.stopping import Transcript


class Trace(NamedTuple):
    """What is kept of every token on request; each list is as long as the tokens, or empty where nobody asked."""

    entropy: list[float]
    version: list[int]
    drafted: list[bool]
    accepted: list[bool]
    top: list[list[tuple[int, float]]]


@dataclass(eq=False)
class Tenant:
    """A sample from its admission to its last piece."""

    request_id: int
    request: Request
    sample: int
    streams: bool  # pieces come with every step
    cached: int = 0  # tokens of its prompt that were found in the cache
    count: int = 0  # tokens taken over from the row
    stopped_by: int | str | None = None
    error: str | None = None
    valid: int | None = None  # tokens drawn before the error; those behind them mean nothing
    tokens: list[int] = field(default_factory=list[int])  # not handed out yet, and so are the next two
    logprobs: list[float] = field(default_factory=list[float])
    trace: Trace = field(default_factory=lambda: Trace([], [], [], [], []))

    def __post_init__(self) -> None:
        request, sampling = self.request, self.request.sampling
        self.law = Law(sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p)
        self.edits, self.traced = request.edits, request.traced
        self.watched = self.streams or bool(request.stop)  # its tokens are looked at as they are drawn
        self.routing = Routing(len(request.prompt)) if request.experts else None
        self.mask = Mask(request.allow) if callable(request.allow) else None
        self.transcript = request.decode and Transcript(request.decode, request.stop, sampling.min_tokens)

    def fail(self, error: Exception, valid: int) -> None:
        """End with an error behind the first `valid` tokens."""
        self.error, self.valid = f"{type(error).__name__}: {error}", valid

    def absorb(self, new: int, tokens: list[int], logprobs: list[float], trace: Trace | None) -> Finish | None:
        """Take over the last `new` tokens, up to the one that ends the completion, and say why it ends."""
        tokens, logprobs = tokens[-new:], logprobs[-new:]
        if math.isnan(sum(logprobs)):
            raise RuntimeError("the model's logits are not finite: its weights diverged; load an earlier checkpoint")
        kept, finish = self._judge(tokens)
        self.count += kept
        self.tokens += tokens[:kept]
        self.logprobs += logprobs[:kept]
        for mine, last in zip(self.trace, trace or (), strict=False):
            mine += last[-new:][:kept]  # pyright: ignore[reportOperatorIssue]  (lists of one type each)
        return finish

    def piece(self, finish: Finish | None, version: int) -> Piece | None:
        """What was not handed out yet; None where that is nothing."""
        text = None
        if self.transcript:
            try:
                text = self.transcript.take(ends=finish is not None)
            except Exception as error:  # the request's own decode; see `_read`
                self.fail(error, self.count)
                text, finish = "", "error"
        if not self.tokens and not text and finish is None:
            return None
        prompt_experts, experts = self.routing.take(self.count) if self.routing else (None, None)
        piece = Piece(
            self.request_id,
            self.sample,
            self.tokens,
            self.logprobs,
            finish,
            version=version,
            text=text,
            stopped_by=self.stopped_by,
            top_logprobs=self.trace.top if self.request.top_logprobs else None,
            details=Details(*self.trace[:4]) if self.request.details else None,
            cached=self.cached,
            error=self.error,
            experts=experts,
            prompt_experts=prompt_experts,
        )
        self.tokens, self.logprobs, self.trace = [], [], Trace([], [], [], [], [])
        return piece

    def _judge(self, tokens: list[int]) -> tuple[int, Finish | None]:
        """How many of the new tokens belong to the completion, and why it ends with the last of them."""
        if self.transcript is None and self.error is None:  # the row stops by itself, with its last token
            return len(tokens), self._finish(tokens[-1], self.count + len(tokens))
        for kept, token in enumerate(tokens):
            if self.valid is not None and self.count + kept >= self.valid:
                return kept, "error"
            finish = self._read(token, self.count + kept) or self._finish(token, self.count + kept + 1)
            if finish:
                return kept + (finish != "error"), finish
        return len(tokens), "error" if self.error else None

    def _finish(self, token: int, count: int) -> Finish | None:
        finish = self.request.finish_after(token, count)
        if finish == "stop":
            self.stopped_by = token
        return finish

    def _read(self, token: int, count: int) -> Finish | None:
        """Add a token to the text; why that ends the completion. A stop id is none of the text."""
        if self.transcript is None or token in self.request.stop_ids:
            return None
        try:
            stopped = self.transcript.add(token)
        except Exception as error:  # whatever the request's own decode raises is that request's trouble alone
            self.fail(error, count)
            return "error"
        if not stopped:
            return None
        self.stopped_by = self.transcript.stopped_by
        return "stop"
