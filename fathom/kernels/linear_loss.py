"""The head and its loss in one: no full table of logits, and the gradients made on the way forward."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from fathom.kernels.dispatch import fastest
from fathom.kernels.gemm import add_outer_, product
from fathom.kernels.peak import peak

CHUNK_ELEMENTS = 1 << 28  # most logits at a time on a GPU: 1 GiB of float32, and half of that for their gradient
CPU_ELEMENTS = 1 << 19  # which stay in the cache


def linear_loss(
    hidden: Float[Tensor, "N D"], weight: Float[Tensor, "V D"], targets: Int[Tensor, " N"], weights: Float[Tensor, " N"]
) -> tuple[Float[Tensor, ""], Int[Tensor, " N"]]:
    """Sum of weights * -log softmax(hidden @ weight.T)[targets] in float32, and the likeliest token of every row.

    Products read hidden's precision and add in float32. A row of weight zero adds nothing whatever its target is, so
    that nobody need pick rows out. The gradients of hidden and weight are complete when this returns; what is kept
    for the backward pass is as large as these.
    """
    loss, best = _LinearLoss.apply(hidden, weight, targets, weights)  # pyright: ignore
    return loss, best


@fastest
def loss_rows(
    logits: Float[Tensor, "N V"], targets: Int[Tensor, " N"], weights: Float[Tensor, " N"], dtype: torch.dtype
) -> tuple[Float[Tensor, " N"], Int[Tensor, " N"], Float[Tensor, "N V"]]:
    """Of float32 logits: weights * -log p of the targets, the likeliest tokens, and the gradient in `dtype`."""
    top, best = peak(logits)
    p = torch.softmax(logits, -1)
    # log of the chosen probability from its own logit: exact where p underflows
    normaliser = top - p.gather(1, best.unsqueeze(1)).squeeze(1).log()
    chosen = logits.gather(1, targets.unsqueeze(1)).squeeze(1)
    loss = torch.where(weights == 0, 0, weights * (normaliser - chosen))
    gradient = p.mul_(weights.unsqueeze(1)).scatter_add_(1, targets.unsqueeze(1), -weights.unsqueeze(1))
    return loss, best, gradient.to(dtype)


class _LinearLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        matrix = weight.to(hidden.dtype)
        training = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        of_hidden = torch.empty_like(hidden) if training else None
        of_weight = torch.zeros(weight.shape, device=weight.device) if training else None
        losses, best = hidden.new_empty(len(hidden), dtype=torch.float32), torch.empty_like(targets)
        most = CHUNK_ELEMENTS if hidden.is_cuda else CPU_ELEMENTS
        rows = max(most // weight.shape[0], 1)
        for start in range(0, len(hidden), rows):
            at = slice(start, start + rows)
            logits = _float_product(hidden[at], matrix.T)
            losses[at], best[at], gradient = loss_rows(logits, targets[at], weights[at].float(), hidden.dtype)
            del logits
            if of_hidden is not None and of_weight is not None:
                of_hidden[at] = product(gradient, matrix)
                _add_float_outer_(of_weight, gradient, hidden[at])
        ctx.gradients = of_hidden, None if of_weight is None else of_weight.to(weight.dtype)
        ctx.mark_non_differentiable(best)
        return losses.sum(), best

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        of_hidden, of_weight = ctx.gradients
        ctx.gradients = None
        pull = grads[0]
        of_hidden = of_hidden.mul_(pull) if ctx.needs_input_grad[0] else None
        return of_hidden, of_weight.mul_(pull) if ctx.needs_input_grad[1] else None, None, None


def _float_product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b in float32, whatever the precision of the factors."""
    if a.is_cuda and a.dtype != torch.float32:
        return torch.mm(a, b, out_dtype=torch.float32)
    return product(a.float(), b.float())


def _add_float_outer_(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a.T @ b, added in float32."""
    if a.is_cuda and a.dtype != torch.float32:
        total.add_(torch.mm(a.T, b, out_dtype=torch.float32))
    else:
        add_outer_(total, a.float(), b.float())
