"""How a draft is judged, so that the text keeps the law of the model whatever the drafts are.

Coupled noise: draft and target are drawn with the same number, and the draft stands where both are the same token. The
text is then the one without drafts, token for token. The ratio test accepts more: a draft d of law q stands with
probability min(1, p(d) / q(d)), else the token is drawn from norm(max(p - q, 0)), so that the law is p exactly
(Leviathan et al. 2023, Theorem 1; Chen et al. 2023), with text of its own. Greedy drafts are the ratio test with a q
that holds the likeliest token alone: at temperature 0 a draft stands where it is the argmax.
"""

from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from fathom.infer.sampler import invert, stream_key, truncate, uniform
from fathom.kernels.peak import peak

Rule = Literal["coupled", "ratio", "greedy"]
RULES: tuple[Rule, ...] = get_args(Rule)

# Purposes of random numbers at one place. Draft, acceptance and residual must know nothing of each other.
DRAFT, ACCEPT, RESIDUAL = 1, 2, 3


def numbers(purpose: int, key: Int[Tensor, " N"], places: Int[Tensor, "N T"]) -> Float64[Tensor, "N T"]:
    """Numbers in [0, 1) of one purpose, hashed from the keys of rows and places; see `sampler.uniform`."""
    return uniform(stream_key(key, torch.full_like(key, purpose)).unsqueeze(1), places)


def chances(
    logits: Float[Tensor, "N V"],
    temperature: Float[Tensor, " N"],
    top_k: Int[Tensor, " N"],
    top_p: Float[Tensor, " N"],
    min_p: Float[Tensor, " N"],
) -> Float[Tensor, "N V"]:
    """The law that `sampler.draw_each` draws by, as probabilities: at temperature 0 all on the likeliest token."""
    greedy = temperature == 0
    scale = temperature.masked_fill(greedy, 1.0).unsqueeze(1)
    law = truncate((logits / scale).softmax(-1), top_k, top_p, min_p)
    return torch.where(greedy.unsqueeze(1), likeliest_only(logits), law / law.sum(-1, keepdim=True))


def likeliest_only(logits: Float[Tensor, "N V"]) -> Float[Tensor, "N V"]:
    """A law that holds the likeliest token alone, the first of equals."""
    return torch.zeros_like(logits).scatter_(1, peak(logits)[1].unsqueeze(1), 1.0)


def settle(
    target: Float[Tensor, "N V"],
    proposal: Float[Tensor, "N V"],
    draft: Int[Tensor, " N"],
    accept: Float64[Tensor, " N"],
    residual: Float64[Tensor, " N"],
) -> Int[Tensor, " N"]:
    """The token of each place by the ratio test: its law is `target` if `draft` was drawn from `proposal`.

    A proposal of zeros is no draft, and the token is drawn from `target`. A token that replaces its draft is another
    one: where the target gives the draft less than the proposal did, the residual gives it nothing.
    """
    p, q = (law.gather(1, draft.unsqueeze(1)).squeeze(1).double() for law in (target, proposal))
    accepted = accept * q < p
    left = (target - proposal).clamp_(min=0)
    # rounding may reject between laws that are all but equal, and leave nothing
    left = torch.where(left.sum(-1, keepdim=True) > 0, left, target)
    return torch.where(accepted & (q > 0), draft, invert(left, residual))


def leading(kept: Bool[Tensor, "N K"]) -> Int[Tensor, " N"]:
    """How many drafts of each row stand before the first that does not."""
    return kept.long().cumprod(-1).sum(-1)
