"""What goes into the engine and what comes out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from fathom.config import SamplingConfig

Finish = Literal["stop", "length"]  # a stop id was drawn; max_tokens were drawn


@dataclass(frozen=True)
class Request:
    """`n` completions of one prompt, each with random numbers of its own."""

    prompt: Sequence[int]
    sampling: SamplingConfig
    seed: int  # with the sample's index it fixes the completion, whatever else is decoded beside it
    stop_ids: frozenset[int]  # a completion ends with the first of these, which belongs to it
    n: int = 1

    def __post_init__(self) -> None:
        if not self.prompt:
            raise ValueError("the prompt is empty; give at least one token, such as the begin-of-sequence token")
        if self.n < 1:
            raise ValueError(f"n={self.n} asks for no completion; give 1 or more")

    @property
    def places(self) -> int:
        """Tokens that a row must hold for the prompt and its longest completion."""
        return len(self.prompt) + self.sampling.max_tokens

    def finish_after(self, last: int, count: int) -> Finish | None:
        """Why a completion of `count` tokens ends with token `last`; None where it goes on."""
        if last in self.stop_ids:
            return "stop"
        return "length" if count == self.sampling.max_tokens else None


@dataclass(frozen=True)
class Piece:
    """New tokens of one completion: all of them, or when streamed those since the piece before."""

    request: int  # what `Engine.submit` returned
    sample: int  # 0 .. n - 1
    tokens: list[int]  # the stop token included
    logprobs: list[
        float
    ]  # of each token under softmax(logits / temperature), nothing truncated; temperature 0 counts as 1
    finish: Finish | None  # None where more tokens follow
