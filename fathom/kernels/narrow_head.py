"""Log-probabilities of tokens from products of bfloat16 numbers with float32 sums: the output head on a GPU."""

from typing import Any

import torch
from jaxtyping import BFloat16, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from fathom.kernels.fuse import fused
from fathom.kernels.gemm import product, wide_product

CHUNK_ELEMENTS = 1 << 27  # float32 logits handled at a time: half a GiB


class NarrowLogprobs(torch.autograd.Function):
    """What `token_logprobs` says of bfloat16 states.

    Logits are float32 and never kept; probabilities are, in bfloat16, the precision of the logits' gradient which the
    backward pass makes of them in place.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float, entropy: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        matrix = weight.to(hidden.dtype)
        rows = max(1, CHUNK_ELEMENTS // weight.shape[0])
        needs_grad = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        kept = hidden.new_empty(len(hidden) if needs_grad else 0, weight.shape[0])
        found = list[tuple[Tensor, ...]]()
        for at in range(0, len(hidden), rows):
            logits = wide_product(hidden[at : at + rows], matrix.T)
            if temperature != 1.0:
                logits.div_(temperature)
            chunk = targets[at : at + rows]
            place = kept[at : at + rows] if needs_grad else None
            found.append(_spread(logits, chunk, place) if entropy else _spread_plain(logits, chunk, place))
        logprob, best, spread = (torch.cat(parts) for parts in zip(*found, strict=True))
        ctx.save_for_backward(hidden, matrix, targets, spread if entropy else None)
        ctx.probabilities, ctx.temperature, ctx.dtype = kept if needs_grad else None, temperature, weight.dtype
        ctx.set_materialize_grads(False)  # an entropy that is only looked at has no gradient to compute
        ctx.mark_non_differentiable(best)
        return logprob, best, spread

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        hidden, matrix, targets, entropy = ctx.saved_tensors
        p, ctx.probabilities = ctx.probabilities, None
        pull = (torch.zeros_like(targets, dtype=torch.float32) if grads[0] is None else grads[0]) / ctx.temperature
        if grads[2] is None or entropy is None:
            _to_gradient_(p, targets, pull)
        else:
            _to_gradient_with_entropy_(p, targets, pull, grads[2] / ctx.temperature, entropy)
        grad_hidden = product(p, matrix)
        wide = torch.promote_types(ctx.dtype, hidden.dtype)
        grad_weight = wide_product(p.T, hidden).to(wide) if wide != hidden.dtype else product(p.T, hidden)
        return grad_hidden, grad_weight, None, None, None


def _spread_plain(
    logits: Float[Tensor, "N V"], targets: Int[Tensor, " N"], place: BFloat16[Tensor, "N V"] | None
) -> tuple[Tensor, Tensor, Tensor]:
    logprob, best = _softmax(logits, targets, place)
    return logprob, best, torch.zeros_like(logprob)


@fused
def _softmax(logits: Tensor, targets: Tensor, place: Tensor | None) -> tuple[Tensor, Tensor]:
    """log p of the targets and the likeliest tokens; all p are written to `place`."""
    normaliser = torch.logsumexp(logits, -1, keepdim=True)
    if place is not None:
        place.copy_((logits - normaliser).exp())
    chosen = logits.gather(1, targets.unsqueeze(1))
    return (chosen - normaliser).squeeze(1), logits.argmax(-1)


@fused
def _spread(logits: Tensor, targets: Tensor, place: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """What `_softmax` gives, and the entropy."""
    normaliser = torch.logsumexp(logits, -1, keepdim=True)
    p = (logits - normaliser).exp()
    if place is not None:
        place.copy_(p)
    chosen = logits.gather(1, targets.unsqueeze(1))
    return (chosen - normaliser).squeeze(1), logits.argmax(-1), normaliser.squeeze(1) - (p * logits).sum(-1)


@fused
def _to_gradient_(p: Tensor, targets: Tensor, pull: Tensor) -> None:
    """The gradient of the logits in place of the probabilities; `pull` is that of log p."""
    p.copy_((_is_target(p, targets) - p.float()) * pull.unsqueeze(1))


@fused
def _to_gradient_with_entropy_(p: Tensor, targets: Tensor, pull: Tensor, bend: Tensor, entropy: Tensor) -> None:
    """The same, with `bend` the gradient of the entropy: dH/dlogits = -p (log p + H)."""
    wide = p.float()
    further = torch.special.entr(wide) - wide * entropy.unsqueeze(1)
    p.copy_((_is_target(p, targets) - wide) * pull.unsqueeze(1) + bend.unsqueeze(1) * further)


def _is_target(p: Tensor, targets: Tensor) -> Tensor:
    return (torch.arange(p.shape[1], device=p.device) == targets.unsqueeze(1)).float()
