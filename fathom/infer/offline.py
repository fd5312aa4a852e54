"""Generation without a server: a model by its path, prompts in, completions out.

from fathom import Engine

engine = Engine("runs/laptop")
print(engine.ask("8,2,4:10", temperature=0).answer)
for replies in engine.generate(["8,2,4:10", "3,9,5:11"], n=4, seed=1):
    print([reply.answer for reply in replies])
"""

import difflib
import random
import secrets
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from fathom.config import SamplingConfig
from fathom.infer import engine as batching
from fathom.infer.request import Finish, Piece, Request
from fathom.infer.speaker import Message, Speaker, load_speaker
from fathom.model import Transformer
from fathom.parallel.world import choose_device
from fathom.text.answer import final_answer
from fathom.text.special import THINK, THINK_END
from fathom.text.tokenizer import Tokenizer

Prompt = str | Sequence[Message]  # a text, or messages with `role` and `content`

ROWS = 64  # completions written together
AHEAD = 2  # requests are taken up while fewer samples than so many times the rows are in flight


@dataclass(frozen=True)
class Completion:
    """One completion, as text and as tokens."""

    text: str  # the thinking included, from its <think> on, without the token that ended it
    tokens: list[int]  # as drawn, the stop token included
    logprobs: list[float]  # of each token, as `Piece` has them
    finish: Finish  # "stop" or, where max_tokens ended it, "length"

    @property
    def thinking(self) -> str:
        """What stands between <think> and </think>, or behind a <think> that never closes; empty without one."""
        head, closed, _ = self.text.rpartition(THINK_END)
        before, opened, inside = (head if closed else self.text).partition(THINK)
        return (inside if opened else before if closed else "").strip()

    @property
    def answer(self) -> str | None:
        r"""The final answer: the last `<answer>` or `\\boxed{}` behind the thinking; None where there is none."""
        return final_answer(self.text)


class Engine:
    """A trained model, ready to answer: the newest of a run, or an imported, exported or training checkpoint.

    `rows` completions are written together, in batches that finished ones leave at once. Sampling is that of the run's
    reinforcement learning, or SamplingConfig's defaults for a checkpoint, unless a call says otherwise: all fields of
    SamplingConfig are keywords (`temperature`, `top_p`, `top_k`, `max_tokens`).
    """

    def __init__(
        self, source: Path | str | Speaker, *, rows: int = ROWS, device: str = "auto", int8: bool = False
    ) -> None:
        """Load the model at a path, or take one that is loaded already; `int8` rounds what a CPU decodes with."""
        self.speaker = source if isinstance(source, Speaker) else load_speaker(source, choose_device(device))
        self.rows = rows
        self._engine = batching.Engine(self.speaker.model, rows, int8=int8)

    @property
    def model(self) -> Transformer:
        """The model; its weights may change between calls."""
        return self.speaker.model

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that the model was trained with."""
        return self.speaker.tokenizer

    def ask(self, prompt: Prompt, *, seed: int | None = None, **sampling: Any) -> Completion:
        """One completion of one prompt."""
        return self.generate([prompt], seed=seed, **sampling)[0][0]

    def generate(
        self, prompts: Sequence[Prompt], *, n: int = 1, seed: int | None = None, **sampling: Any
    ) -> list[list[Completion]]:
        """`n` completions of every prompt, in the order of the prompts.

        With a seed they are the same in every call, and depend on nothing but the prompt, its place and n's index.
        Raises ValueError, before anything is drawn, for a prompt or a field that cannot be served.
        """
        if isinstance(prompts, str):
            raise ValueError("generate takes a list of prompts; put the one in a list, or use ask")
        law = choose(self.speaker.sampling, sampling)
        requests = [self._request(prompt, law, seed, place, n) for place, prompt in enumerate(prompts)]
        found = zip(requests, self._engine.generate(requests), strict=True)
        return [[self._completion(request, piece) for piece in pieces] for request, pieces in found]

    def stream(self, prompt: Prompt, *, seed: int | None = None, **sampling: Any) -> Iterator[str]:
        """The text of one completion as it is drawn, never half a character."""
        request = self._request(prompt, choose(self.speaker.sampling, sampling), seed, 0, 1)
        decoder = self.tokenizer.stream()
        if self.speaker.opens_thinking(request.prompt):
            yield THINK
        for piece in self._engine.stream(request):
            for token in piece.tokens:
                if token not in request.stop_ids and (text := decoder.step(token)):
                    yield text
        if rest := decoder.finish():
            yield rest

    def complete(self, requests: Iterable[Request]) -> Iterator[tuple[int, list[Completion] | ValueError]]:
        """The completions of each request with its place among the requests, in the order in which they finish.

        Requests are taken up a few at a time, so there may be millions. One that is refused comes back as its
        ValueError and disturbs no other.
        """
        waiting = enumerate(requests)
        flights: dict[int, tuple[int, Request, list[Piece]]] = {}
        try:
            while True:
                while sum(request.n for _, request, _ in flights.values()) < AHEAD * self.rows:
                    place, request = next(waiting, (0, None))
                    if request is None:
                        break
                    try:
                        flights[self._engine.submit(request)] = place, request, []
                    except ValueError as error:
                        yield place, error
                if not flights:
                    return
                for piece in self._engine.step():
                    place, request, pieces = flights[piece.request]
                    pieces.append(piece)
                    if len(pieces) == request.n:
                        del flights[piece.request]
                        pieces.sort(key=lambda piece: piece.sample)
                        yield place, [self._completion(request, piece) for piece in pieces]
        finally:
            self._engine.clear()

    def _request(self, prompt: Prompt, law: SamplingConfig, seed: int | None, place: int, n: int) -> Request:
        own = secrets.randbits(48) if seed is None else seed_of(seed, place)
        return Request(self.speaker.encode(prompt), law, seed=own, stop_ids=self.speaker.stop_ids, n=n)

    def _completion(self, request: Request, piece: Piece) -> Completion:
        text = self.speaker.read(piece.tokens)
        if self.speaker.opens_thinking(request.prompt):
            text = THINK + text
        return Completion(text, piece.tokens, piece.logprobs, piece.finish or "length")


def seed_of(seed: int, place: int | str) -> int:
    """The random numbers of the request at `place`, whatever is drawn beside it."""
    return random.Random(f"{seed}/{place}").getrandbits(48)


def choose(sampling: SamplingConfig, changes: dict[str, Any]) -> SamplingConfig:
    """`sampling` with some fields changed. Raises ValueError for a name or a value that is none of SamplingConfig's."""
    known = {field.name: getattr(sampling, field.name) for field in fields(sampling)}
    for name, value in changes.items():
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"the fields are {', '.join(known)}"
            raise ValueError(f"{name!r} is no field of sampling; {hint}")
        wanted = type(known[name])
        accepts = (int, float) if wanted is float else (list, tuple) if wanted is tuple else wanted
        if not isinstance(value, accepts) or (isinstance(value, bool) and wanted is not bool) or value != value:
            raise ValueError(f"{name}={value!r} is not {_described(wanted)}; give one")
    return replace(sampling, **{name: tuple(v) if isinstance(v, list) else v for name, v in changes.items()})


def _described(kind: type) -> str:
    return {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}.get(kind, "a list")
