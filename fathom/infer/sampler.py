"""Drawing tokens: temperature, min-p, top-k, top-p, and random numbers that belong to a place, not to a batch.

One uniform number is hashed from (seed, sample, position) and inverts the cumulative distribution. The same request
therefore draws the same text alone or in a crowd, in any row, and with drafts checked ahead: no generator is advanced,
so nothing depends on who else draws. A draft drawn with the number of its place meets the target's draw often, which is
what exact speculation needs.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64, Int
from torch import Tensor

from fathom.kernels.peak import peak

BLOCK = 64  # entries summed before the cumulative sum, which is slow and inexact over a whole vocabulary

# splitmix64 (Steele, Lea, Flood 2014) as signed integers: int64 products wrap as unsigned ones do
GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
FIRST = 0xBF58476D1CE4E5B9 - (1 << 64)
SECOND = 0x94D049BB133111EB - (1 << 64)


class Law(NamedTuple):
    """How a row is drawn; see `draw_each`."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float

    @property
    def truncates(self) -> bool:
        return self.top_k > 0 or self.top_p < 1.0 or self.min_p > 0.0


class Choice(NamedTuple):
    """Tokens and their log-probabilities in float32, both (N,) or (N, T)."""

    token: Tensor
    logprob: Tensor


def stream_key(seed: Int[Tensor, " N"], sample: Int[Tensor, " N"]) -> Int[Tensor, " N"]:
    """The key of the random numbers of sample `sample` of a request with seed `seed`."""
    return _mix(_mix(seed + GOLDEN) + sample * GOLDEN)


def uniform(key: Int[Tensor, "N 1"], position: Int[Tensor, "N T"]) -> Float64[Tensor, "N T"]:
    """The numbers in [0, 1), of 53 bits, that draw the tokens at `position`."""
    return (_mix(position * GOLDEN + key) >> 11).bitwise_and_((1 << 53) - 1).double().mul_(2.0**-53)


def likeliest(logits: Float[Tensor, "N V"]) -> Choice:
    """Temperature 0: the token of the highest logit, the first of equals, with its log-probability at temperature 1."""
    return _chosen(logits.softmax(-1), peak(logits)[1])


def draw(logits: Float[Tensor, "N V"], uniforms: Float64[Tensor, " N"], temperature: float) -> Choice:
    """Draw from softmax(logits / temperature), one temperature above 0 for all rows. Overwrites `logits`."""
    probability = (logits if temperature == 1.0 else logits.div_(temperature)).softmax(-1)
    return _chosen(probability, invert(probability, uniforms))


def draw_each(
    logits: Float[Tensor, "N V"],
    uniforms: Float64[Tensor, " N"],
    temperature: Float[Tensor, " N"],
    top_k: Int[Tensor, " N"],
    top_p: Float[Tensor, " N"],
    min_p: Float[Tensor, " N"],
    edited: Float[Tensor, "N V"] | None = None,
) -> Choice:
    """Draw each row by a law of its own; temperature 0 takes the likeliest token. Overwrites `logits` and `edited`.

    With `edited`, logits that were changed before the draw, tokens are drawn from those. Log-probabilities stay the
    model's own: of `logits`, before truncation, at temperature 1 where it is 0.
    """
    greedy = temperature == 0
    scale = temperature.masked_fill(greedy, 1.0).unsqueeze(1)
    best = peak(logits if edited is None else edited)[1]
    probability = logits.div_(scale).softmax(-1)
    law = probability if edited is None else edited.div_(scale).softmax(-1)
    drawn = invert(truncate(law, top_k, top_p, min_p), uniforms)
    choice = _chosen(probability, torch.where(greedy, best, drawn))
    if edited is None:
        return choice
    # a token may have been forced whose probability is too small for float32, but not its logarithm
    exact = logits.gather(1, choice.token.unsqueeze(1)).squeeze(1) - logits.logsumexp(-1)
    return Choice(choice.token, torch.where(choice.logprob == -torch.inf, exact, choice.logprob))


def truncate(
    probability: Float[Tensor, "N V"],
    top_k: Int[Tensor, " N"],
    top_p: Float[Tensor, " N"],
    min_p: Float[Tensor, " N"],
) -> Float[Tensor, "N V"]:
    """Zeros for the tokens that are ruled out: those less likely than `min_p` times the likeliest, then all but the
    `top_k` likeliest (0 keeps all), then of these all but the fewest that hold the share `top_p` of their mass. Of
    equals the first stay; the likeliest always does."""
    rows = ((top_k > 0) | (top_p < 1) | (min_p > 0)).nonzero().flatten()
    if not rows.numel():
        return probability
    ranked, order = probability[rows].sort(dim=-1, descending=True, stable=True)
    rank = torch.arange(ranked.shape[1], device=ranked.device)
    k = top_k[rows].unsqueeze(1)
    ranked.masked_fill_((rank >= k) & (k > 0) | (ranked < min_p[rows].unsqueeze(1) * ranked[:, :1]), 0.0)
    before = ranked.cumsum(-1, dtype=torch.float64) - ranked
    enough = before >= top_p[rows].unsqueeze(1) * ranked.sum(-1, keepdim=True, dtype=torch.float64)
    ranked.masked_fill_(enough & (rank > 0), 0.0)
    return probability.index_copy(0, rows, torch.empty_like(ranked).scatter_(1, order, ranked))


def invert(weights: Float[Tensor, "N V"], uniforms: Float64[Tensor, " N"]) -> Int[Tensor, " N"]:
    """The first index whose cumulative weight exceeds `uniforms` times the row's total; never one of weight zero.

    Sums of blocks find the block, then a sum within it the entry: four times as fast on a CPU as one cumulative sum
    over 1,536 entries, and accurate for rare tokens of large vocabularies.
    """
    last = weights.shape[1] - 1
    if extra := -weights.shape[1] % BLOCK:
        weights = F.pad(weights, (0, extra))
    blocks = weights.unflatten(1, (-1, BLOCK))  # (N, V / BLOCK, BLOCK)
    ends = blocks.sum(-1).cumsum(-1, dtype=torch.float64)
    goal = uniforms.unsqueeze(1) * ends[:, -1:]
    block = torch.searchsorted(ends, goal, right=True).clamp_(max=last // BLOCK)  # NaN leads behind the end
    end = ends.gather(1, block)
    start = ends.gather(1, (block - 1).clamp_(min=0)).masked_fill_(block == 0, 0.0)
    inner = blocks.gather(1, block.unsqueeze(-1).expand(-1, -1, BLOCK)).squeeze(1).cumsum(-1, dtype=torch.float64)
    # a share of the block's own sum: rounded differently, the sum of the whole could point behind its last weight
    share = (goal - start) / (end - start)
    entry = torch.searchsorted(inner, share * inner[:, -1:], right=True)
    return (block * BLOCK + entry).squeeze(1).clamp_(max=last)


def _chosen(probability: Tensor, token: Tensor) -> Choice:
    return Choice(token, probability.gather(1, token.unsqueeze(1)).squeeze(1).log())


def _mix(state: Tensor) -> Tensor:
    """splitmix64's finaliser; an arithmetic shift right needs the sign's copies masked off."""
    state = (((state >> 30) & ((1 << 34) - 1)) ^ state) * FIRST
    state = (((state >> 27) & ((1 << 37) - 1)) ^ state) * SECOND
    return ((state >> 31) & ((1 << 33) - 1)) ^ state
