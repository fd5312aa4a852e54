"""What a model and an engine can serve: everything else is refused at submit, in a sentence."""

from collections.abc import Iterable
from numbers import Real

import torch

from fathom.infer.request import Request
from fathom.infer.verify import RULES

MOST_STOP_IDS = 64
MOST_STOPS = 16  # stop strings; OpenAI's API takes 4
MOST_LOGPROBS = 128  # likeliest tokens of a place
MOST_DRAFTS = 8  # of one step
BIAS_LIMIT = 100.0  # both ways (OpenAI API)


def check_drafts(drafts: object, verify: object, modules: int) -> None:
    """Raise ValueError unless a model with so many MTP modules can draft so."""
    if verify not in RULES:
        raise ValueError(f"verify={verify!r} is unknown; choose one of {', '.join(RULES)}")
    if drafts != "auto" and (not isinstance(drafts, int) or not 0 <= drafts <= MOST_DRAFTS):
        raise ValueError(f'drafts={drafts!r} is no count in 0..{MOST_DRAFTS}; give one, or "auto"')
    if drafts and not modules:
        raise ValueError("drafts need an MTP module, and this model has num_nextn_predict_layers=0; decode without")


def check_latents(latents: object) -> None:
    """Raise ValueError for a cache that there is not."""
    if latents not in (None, "fp8"):
        raise ValueError(f'latents={latents!r} is unknown; give "fp8", or None for the numbers of the model')


def check_request(request: Request, vocab_size: int, capacity: int) -> None:
    """Raise ValueError, naming the field and its limit, unless a row of `capacity` places can serve the request."""
    _check_ids("prompt", request.prompt, vocab_size)
    _check_ids("stop_ids", request.stop_ids, vocab_size)
    _check_place(request, capacity)
    _check_stops(request)
    _check_bias(request, vocab_size)
    _check_masks(request, vocab_size)
    most = min(MOST_LOGPROBS, vocab_size)
    if not 0 <= request.top_logprobs <= most:
        raise ValueError(f"top_logprobs={request.top_logprobs} lies outside 0..{most}; ask for that many at most")
    if type(request.seed) is not int:
        raise ValueError(f"seed={request.seed!r} is no whole number; give one")


def check_experts(request: Request, moe_layers: int, invariant: bool) -> None:
    """Raise ValueError where experts are asked for that nothing here chooses, or could tell."""
    if request.experts and not moe_layers:
        raise ValueError("experts=True asks for the choices of MoE layers, and this model has none; leave it out")
    if request.experts and invariant:
        raise ValueError(
            "experts=True is not for an engine with invariant=True, whose kernels do not tell what they choose; "
            "ask an engine without it"
        )


def check_pages(request: Request, needed: int, pages: int, page_size: int) -> None:
    """Raise ValueError if one completion, alone, needs more pages than there are."""
    if needed > pages:
        raise ValueError(
            f"a prompt of {len(request.prompt)} tokens and max_tokens={request.sampling.max_tokens} need {needed} "
            f"pages of {page_size} places, but the engine has pages={pages}; shorten the prompt, lower max_tokens or "
            "give the engine more pages"
        )


def _check_ids(name: str, ids: Iterable[int], vocab_size: int) -> None:
    numbers = list(ids)
    try:
        tokens = torch.tensor(numbers or [0])
    except (TypeError, ValueError, RuntimeError):
        tokens = torch.tensor([False])
    if tokens.dtype != torch.int64 or tokens.dim() != 1:
        raise ValueError(f"{name} is no list of token ids; encode the text with the model's tokenizer first")
    if len(strangers := tokens[(tokens < 0) | (tokens >= vocab_size)]):
        raise ValueError(
            f"{name} holds token id {int(strangers[0])}, outside the model's vocabulary of {vocab_size}; "
            "encode with the tokenizer that the model was trained with"
        )


def _check_place(request: Request, capacity: int) -> None:
    if request.places > capacity:
        raise ValueError(
            f"a prompt of {len(request.prompt)} tokens and max_tokens={request.sampling.max_tokens} need "
            f"{request.places} places, but a row holds {capacity}; shorten the prompt or lower max_tokens"
        )


def _check_stops(request: Request) -> None:
    if len(request.stop_ids) > MOST_STOP_IDS:
        raise ValueError(f"stop_ids holds {len(request.stop_ids)} ids; give {MOST_STOP_IDS} at most")
    if isinstance(request.stop, str):
        raise ValueError(f"stop={request.stop!r} is one string; give a tuple of strings")
    if len(request.stop) > MOST_STOPS:
        raise ValueError(f"stop holds {len(request.stop)} strings; give {MOST_STOPS} at most")
    if any(not isinstance(text, str) or not text for text in request.stop):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ValueError(f"stop={request.stop!r} holds an empty string or none, which ends no text; leave it out")
    if request.stop and request.decode is None:
        raise ValueError("stop needs decode, which turns tokens to text; give the tokenizer's decode with the request")


def _check_bias(request: Request, vocab_size: int) -> None:
    _check_ids("logit_bias", request.logit_bias, vocab_size)
    for token, bias in request.logit_bias.items():
        if not isinstance(bias, Real) or not -BIAS_LIMIT <= bias <= BIAS_LIMIT:
            raise ValueError(
                f"logit_bias of token {token} is {bias}, outside [-{BIAS_LIMIT:g}, {BIAS_LIMIT:g}]; "
                "to rule tokens out give the others as allow"
            )


def _check_masks(request: Request, vocab_size: int) -> None:
    least, stops = request.sampling.min_tokens, request.stop_ids
    if request.allow is not None and not isinstance(request.allow, frozenset) and not callable(request.allow):
        raise ValueError(
            f"allow={request.allow!r} is neither a frozenset of token ids nor a callable; give one or None"
        )
    if isinstance(request.allow, frozenset):
        _check_ids("allow", request.allow, vocab_size)
        if not request.allow:
            raise ValueError("allow is empty, which leaves nothing to draw; give at least one token or None")
        if least and request.allow <= stops:
            raise ValueError(
                f"allow holds stop ids alone, which min_tokens={least} rules out at first; allow more or set it to 0"
            )
    if least and len(stops) >= vocab_size:
        raise ValueError(f"stop_ids holds all tokens, which min_tokens={least} rules out at first; set it to 0")
    if forced := request.forced:
        others = (forced.since, forced.unless)
        _check_ids("forced", [*forced.tokens, *(each for each in others if each is not None)], vocab_size)
        first = next((place for place, token in enumerate(forced.tokens) if token in stops), len(forced.tokens))
        if first < len(forced.tokens) and forced.after + first < least:
            raise ValueError(
                f"forced puts stop id {forced.tokens[first]} behind {forced.after + first} tokens, before "
                f"min_tokens={least}; force it later or lower min_tokens"
            )
