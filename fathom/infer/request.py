"""What goes into the engine and what comes out."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from jaxtyping import Bool, Int16
from torch import Tensor

from fathom.config import SamplingConfig

# a stop id was drawn or a stop string completed; max_tokens were drawn; `allow` or `decode` of the request failed
Finish = Literal["stop", "length", "error"]

Allowed = Collection[int] | Bool[Tensor, " V"] | None  # tokens that may come next, as ids or a mask; None allows all
Allow = Callable[[Sequence[int]], Allowed]  # of the tokens drawn so far


@dataclass(frozen=True, kw_only=True)
class Forced:
    """Tokens that are written whatever the model says: the end of thinking on a budget, or how a completion begins.

    With the id of `</think>` as `unless`, `after` is the most tokens that are thought before `tokens` are written; a
    model that opens its thinking itself has its opening id as `since`.
    """

    tokens: tuple[int, ...]  # written once, in this order; before them nothing else is heeded
    after: int = 0  # tokens drawn before them, counted from the completion's start or from behind `since`
    since: int | None = None  # counting starts behind the first of this id; None starts with the completion
    unless: int | None = None  # nothing is forced where this id was drawn before its turn, once counting has started

    def __post_init__(self) -> None:
        if not self.tokens:
            raise ValueError("forced.tokens is empty; give at least one token, or no Forced at all")
        if self.after < 0:
            raise ValueError(f"forced.after={self.after} is negative; give the number of tokens before the forced ones")


@dataclass(frozen=True)
class Request:
    """`n` completions of one prompt, each with random numbers of its own.

    `allow` as a callable is asked once for every prefix of every completion, in order and with or without drafts, but
    not where a token is forced. What it raises, and a mask that leaves nothing to draw, ends that completion alone,
    with the finish "error".

    Of `experts` the choices of every MoE layer are kept beside the cache, and with the pages of the prompt cache: such
    a request finds the pages of others that asked for experts, and no others. On a GPU its steps run without graphs.
    """

    prompt: Sequence[int]
    sampling: SamplingConfig
    seed: int  # with the sample's index it fixes the completion, whatever else is decoded beside it
    stop_ids: frozenset[int]  # a completion ends with the first of these, which belongs to it
    n: int = 1
    stop: tuple[str, ...] = ()  # a text ends before the first of these; needs `decode`
    decode: Callable[[Sequence[int]], str] | None = (
        None  # tokens to text, such as a tokenizer's; pieces carry text then
    )
    logit_bias: Mapping[int, float] = field(default_factory=dict[int, float])  # added to logits, within [-100, 100]
    allow: frozenset[int] | Allow | None = None  # tokens that may be drawn: always the same, or asked at every step
    forced: Forced | None = None
    top_logprobs: int = 0  # pieces carry so many likeliest tokens of every place
    details: bool = False  # pieces carry `Details`
    experts: bool = False  # pieces carry the experts that every token went to
    namespace: str = ""  # cached prompts are shared with requests of the same one alone

    def __post_init__(self) -> None:
        if not len(self.prompt):
            raise ValueError("the prompt is empty; give at least one token, such as the begin-of-sequence token")
        if type(self.n) is not int or self.n < 1:
            raise ValueError(f"n={self.n} asks for no completion; give a whole number of 1 or more")

    @property
    def places(self) -> int:
        """Tokens that a row must hold for the prompt and its longest completion."""
        return len(self.prompt) + self.sampling.max_tokens

    @property
    def edits(self) -> bool:
        """Whether its logits are changed before the draw."""
        waits = bool(self.sampling.min_tokens and self.stop_ids)
        given = bool(self.logit_bias) or self.allow is not None or self.forced is not None
        return given or waits or self.sampling.penalises

    @property
    def traced(self) -> bool:
        """Whether more than the log-probability of each token is kept."""
        return self.details or self.top_logprobs > 0

    def finish_after(self, last: int, count: int) -> Finish | None:
        """Why a completion of `count` tokens ends with token `last`; None where it goes on."""
        if last in self.stop_ids:
            return "stop"
        return "length" if count == self.sampling.max_tokens else None


@dataclass(frozen=True)
class Details:
    """More of every token of a piece: lists as long as its tokens."""

    entropy: list[float]  # nats, of softmax(logits / temperature), nothing truncated; temperature 0 counts as 1
    version: list[int]  # of the weights that drew it
    drafted: list[bool]  # a draft was checked in its place
    accepted: list[bool]  # and was this token, so that the token behind it came in the same step


@dataclass(frozen=True)
class Piece:
    """New tokens of one completion: all of them, or when streamed those since the piece before.

    Log-probabilities are the model's own, under softmax(logits / temperature): no penalty, bias or mask is in them and
    nothing is truncated; temperature 0 counts as 1.
    """

    request: int  # what `Engine.submit` returned
    sample: int  # 0 .. n - 1
    tokens: list[int]  # the stop token included, and those that spell a stop string
    logprobs: list[float]  # of each token
    finish: Finish | None  # None where more tokens follow
    version: int = 0  # of the weights that drew the last of the tokens
    text: str | None = None  # new text, without what ended it; None where the request has no `decode`
    stopped_by: int | str | None = None  # the stop id or stop string, where that is why it ends
    top_logprobs: list[list[tuple[int, float]]] | None = None  # of every place: the likeliest tokens, the first first
    details: Details | None = None
    cached: int = 0  # tokens of the prompt that were found in the cache
    error: str | None = None  # what failed, where the finish is "error"
    # where the request has `experts`: of each token, what every MoE layer chose at the place that drew it, the one
    # before it; those of MTP modules are not among them. `replay_of` makes of them what a training pass repeats.
    experts: Int16[Tensor, "T L K"] | None = field(default=None, compare=False)  # tensors have no single truth
    prompt_experts: Int16[Tensor, "S L K"] | None = field(default=None, compare=False)  # with a sample's first piece
