"""A client's wish as the engine's request."""

import re
import secrets
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from fathom.config import SamplingConfig
from fathom.infer.offline import seed_of
from fathom.infer.request import Allow, Forced, Request
from fathom.infer.speaker import Speaker
from fathom.serve.errors import ApiError
from fathom.serve.schema import ChatRequest, Wish

NAMES = {"stop_ids": "stop_token_ids"}  # fields of the engine's request that clients call otherwise

TEXT_TOKENS = 16  # of /v1/completions where the request names none (OpenAI API)


@dataclass(frozen=True)
class Limits:
    """What one request may take."""

    context: int  # tokens, prompt and completion together
    default_max_tokens: int  # where the request names none
    choices: int  # most n


def choose_max_tokens(wish: Wish, prompt_tokens: int, limits: Limits) -> int:
    """The tokens a completion may have; ApiError with the counts where the context is too short."""
    field = "messages" if isinstance(wish, ChatRequest) else "prompt"
    room = limits.context - prompt_tokens
    if room < (wish.max_tokens != 0):
        raise ApiError(
            400,
            f"the prompt has {prompt_tokens} tokens, but the context holds {limits.context} with the completion; "
            "shorten it",
            param=field,
            code="context_length_exceeded",
        )
    named = {"max_tokens": wish.max_tokens}
    if isinstance(wish, ChatRequest):
        named = {"max_completion_tokens": wish.max_completion_tokens} | named
    name, given = next(((name, value) for name, value in named.items() if value is not None), ("", None))
    if given is None:
        return min(room, limits.default_max_tokens if isinstance(wish, ChatRequest) else TEXT_TOKENS)
    if given > room:
        raise ApiError(
            400,
            f"the prompt has {prompt_tokens} tokens and {name}={given}, {prompt_tokens + given} together, but the "
            f"context holds {limits.context}; shorten the prompt or lower {name}",
            param=name,
            code="context_length_exceeded",
        )
    return given


def build_request(
    wish: Wish,
    prompt: Sequence[int],
    speaker: Speaker,
    max_tokens: int,
    limits: Limits,
    forced: Forced | None = None,
    allow: Allow | None = None,
    place: int = 0,
) -> Request:
    """The request for `wish`. The prompt at `place` of several draws by random numbers of its own.

    Raises ApiError, naming the field, for what no engine takes.
    """
    n = wish.n or 1
    if n > limits.choices:
        raise ApiError(400, f"n={n} is more than the {limits.choices} choices that this server gives", param="n")
    stops = frozenset() if wish.ignore_eos else speaker.stop_ids
    top = wish.top_logprobs if isinstance(wish, ChatRequest) else getattr(wish, "logprobs", None)
    with refusals():
        return Request(
            prompt,
            sampling_of(wish, speaker.sampling, max_tokens),
            seed=secrets.randbits(48) if wish.seed is None else seed_of(wish.seed, place),
            stop_ids=stops | frozenset(wish.stop_token_ids or ()),
            n=n,
            stop=wish.stops,
            decode=speaker.tokenizer.decode if wish.stops else None,  # else texts are read as they are sent
            logit_bias=_bias(wish),
            allow=allow,
            forced=forced,
            top_logprobs=top or 0,
        )


def sampling_of(wish: Wish, default: SamplingConfig, max_tokens: int) -> SamplingConfig:
    """`default` with what the wish says; the tokens it may have are decided already."""
    names = ("temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty")
    fields = vars(default) | {name: value for name in names if (value := getattr(wish, name)) is not None}
    if wish.top_k is not None:
        fields["top_k"] = max(wish.top_k, 0)
    return SamplingConfig(**fields | {"max_tokens": max_tokens, "min_tokens": wish.min_tokens or 0})


def _bias(wish: Wish) -> dict[int, float]:
    found: dict[int, float] = {}
    for key, value in (wish.logit_bias or {}).items():
        if not key.isascii() or not key.isdigit() or len(key) > 10:
            raise ApiError(400, f"logit_bias has the key {key!r}, which is no token id", param="logit_bias")
        found[int(key)] = value
    return found


@contextmanager
def refusals() -> Generator[None]:
    """Turns a ValueError that begins with a field's name into the 400 that names it."""
    try:
        yield
    except ValueError as error:
        message = str(error).removeprefix("sampling.")
        field = re.match(r"[a-z]+(_[a-z]+)*(?=[= ])", message)
        name = field.group() if field else ""
        param = NAMES.get(name, name) if NAMES.get(name, name) in ChatRequest.model_fields else None
        raise ApiError(400, message, param=param) from error
