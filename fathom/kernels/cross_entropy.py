"""Log-probabilities of chosen tokens straight from hidden states, without a full table of logits."""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from fathom.kernels.fuse import is_fused
from fathom.kernels.gemm import add_outer_, product
from fathom.kernels.narrow_head import NarrowLogprobs
from fathom.kernels.peak import peak

CHUNK_ELEMENTS = 1 << 19  # most logits handled at a time: 2 MiB of float32, which stay in the cache


class TokenLogprobs(NamedTuple):
    """What `token_logprobs` returns; all (N,), float32 unless said."""

    logprob: Tensor
    best: Tensor  # the likeliest token, int64
    entropy: Tensor  # of the whole distribution; zeros unless asked for


def token_logprobs(
    hidden: Float[Tensor, "N D"],
    weight: Float[Tensor, "V D"],
    targets: Int[Tensor, " N"],
    temperature: float = 1.0,
    entropy: bool = False,
) -> TokenLogprobs:
    """log softmax(hidden @ weight.T / temperature)[targets] in float32, computed in chunks of rows.

    The backward pass reuses the probabilities of the forward pass in place, so it runs once. Hidden states in bfloat16
    on a GPU are multiplied in that precision and summed in float32.
    """
    narrow = hidden.dtype == torch.bfloat16 and is_fused(hidden) and len(hidden) > 0
    way = NarrowLogprobs if narrow else _TokenLogprobs
    return TokenLogprobs(*way.apply(hidden, weight, targets, temperature, entropy))  # pyright: ignore


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float, entropy: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        matrix = weight.to(hidden.dtype)
        needs_grad = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        logprobs, bests, entropies = [], [], []
        rows = _chunk_rows(hidden, weight)
        # one block of memory for all chunks: the allocator would cut the heap into pieces
        kept = hidden.new_empty(hidden.shape[0] if needs_grad else rows, weight.shape[0], dtype=torch.float32)
        places = kept.split(rows) if needs_grad else [kept] * len(hidden.split(rows))
        for h, target, place in zip(hidden.split(rows), targets.split(rows), places, strict=True):
            logits = product(h, matrix.T).float()
            if temperature != 1.0:
                logits.div_(temperature)
            chosen = logits.gather(1, target.unsqueeze(1)).squeeze(1)
            p = torch.softmax(logits, -1, out=place[: len(h)])
            # log of the chosen probability from its own logit: exact where p underflows
            top, at = peak(logits)
            normaliser = top - p.gather(1, at.unsqueeze(1)).squeeze(1).log()
            logprobs.append(chosen - normaliser)
            bests.append(at)
            if entropy:
                entropies.append(normaliser - torch.linalg.vecdot(p, logits))
        logprob = torch.cat(logprobs) if logprobs else hidden.new_zeros(0, dtype=torch.float32)
        spread = torch.cat(entropies) if entropies else torch.zeros_like(logprob)
        ctx.save_for_backward(hidden, weight, targets, spread if entropy else None)
        ctx.probabilities, ctx.temperature, ctx.rows = kept if needs_grad else None, temperature, rows
        best = torch.cat(bests) if bests else targets.new_zeros(0)
        ctx.set_materialize_grads(False)  # an entropy that is only looked at has no gradient to compute
        ctx.mark_non_differentiable(best)
        return logprob, best, spread

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        hidden, weight, targets, entropy = ctx.saved_tensors
        rows = ctx.rows
        matrix = weight.to(hidden.dtype)
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros_like(
            weight.T, memory_format=torch.contiguous_format
        )  # (D, V): sooner summed that way
        gradient = (torch.zeros_like(targets, dtype=torch.float32) if grads[0] is None else grads[0]) / ctx.temperature
        bends: list[Any] = [None] * len(hidden.split(rows))
        if grads[2] is not None and entropy is not None:
            bends = list(zip((grads[2] / ctx.temperature).split(rows), entropy.split(rows), strict=True))
        chunks = zip(
            ctx.probabilities.split(rows),
            hidden.split(rows),
            targets.split(rows),
            gradient.split(rows),
            grad_hidden.split(rows),
            bends,
            strict=True,
        )
        for p, h, target, g, grad_h, bend in chunks:
            g = g.unsqueeze(1)
            further = None if bend is None else _entropy_gradient(p, *bend)
            grad_logits = p.mul_(-g).scatter_add_(1, target.unsqueeze(1), g)
            grad_logits = (grad_logits if further is None else grad_logits.add_(further)).to(hidden.dtype)
            grad_h.copy_(product(grad_logits, matrix))
            add_outer_(grad_weight, h.to(weight.dtype), grad_logits.to(weight.dtype))
        ctx.probabilities = None
        return grad_hidden, grad_weight.T, None, None, None


def _entropy_gradient(p: Tensor, pull: Tensor, entropy: Tensor) -> Tensor:
    """`pull` times dH/dlogits = -p (log p + H); a probability that underflowed adds nothing."""
    return pull.unsqueeze(1) * (torch.special.entr(p) - p * entropy.unsqueeze(1))


def _chunk_rows(hidden: Tensor, weight: Tensor) -> int:
    """Rows handled at a time; on a CPU a power of two, the size that its product likes."""
    if hidden.is_cuda:
        return max(1, hidden.shape[0] // 8)
    return 1 << max(1, CHUNK_ELEMENTS // weight.shape[0]).bit_length() - 1
