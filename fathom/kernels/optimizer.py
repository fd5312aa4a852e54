"""The optimizers' arithmetic: AdamW on tensors, one or many, and Muon's orthogonal directions."""

from collections.abc import Sequence

import torch
from jaxtyping import BFloat16, Float
from torch import Tensor

from fathom.kernels.dispatch import fastest

NEWTON_SCHULZ = (3.4445, -4.775, 2.0315)  # Muon's quintic: steep at zero, and near one within a fifth or so


def adamw_(
    parameter: Tensor,
    gradient: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    *,
    step: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    generator: torch.Generator | None = None,
) -> None:
    """One AdamW update in place; moments may be stored in fewer bits than the float32 arithmetic.

    `step` counts from 1. With a generator moments in bfloat16 are rounded up or down by chance, right on average.
    """
    gradient = gradient.float()
    first = exp_avg.float().lerp_(gradient, 1 - beta1)
    second = exp_avg_sq.float().mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    exp_avg.copy_(first if generator is None else stochastic_bfloat16(first, generator))
    exp_avg_sq.copy_(second if generator is None else stochastic_bfloat16(second, generator))
    parameter.mul_(1 - lr * weight_decay)
    denominator = (second / (1 - beta2**step)).sqrt_().add_(eps)  # `second` may be the stored moment itself
    parameter.addcdiv_(first, denominator, value=-lr / (1 - beta1**step))


@fastest
def adamw_many_(
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    *,
    step: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    seed: int | None = None,
) -> None:
    """`adamw_` on every tensor of the lists; on a GPU in one launch.

    With a seed moments in bfloat16 are rounded by chance; one seed gives one result, and every step needs its own.
    """
    generator = None if seed is None or not parameters else torch.Generator(parameters[0].device).manual_seed(seed)
    for parameter, gradient, exp_avg, exp_avg_sq in zip(parameters, gradients, exp_avgs, exp_avg_sqs, strict=True):
        adamw_(
            parameter,
            gradient,
            exp_avg,
            exp_avg_sq,
            step=step,
            lr=lr,
            beta1=beta1,
            beta2=beta2,
            eps=eps,
            weight_decay=weight_decay,
            generator=generator if exp_avg.dtype == torch.bfloat16 else None,
        )


def stochastic_bfloat16(x: Float[Tensor, "*N"], generator: torch.Generator) -> BFloat16[Tensor, "*N"]:
    """x rounded to one of its two neighbours in bfloat16, each as likely as x is near it.

    So a moment that moves by less than half a step still moves on average.
    """
    bits = x.float().view(torch.int32)
    chance = torch.randint(0, 1 << 16, x.shape, generator=generator, device=x.device, dtype=torch.int32)
    rounded = ((bits + chance) >> 16 << 16).view(torch.float32)
    return torch.where(x.isfinite(), rounded, x).bfloat16()


def newton_schulz(matrices: Float[Tensor, "*E O I"], steps: int = 5) -> Float[Tensor, "*E O I"]:
    """Matrices with the singular vectors of the given ones and singular values near one (Muon).

    All matrices of a batch pass together; products are in bfloat16 on a GPU. A matrix of zeros stays one.
    """
    a, b, c = NEWTON_SCHULZ
    x = matrices.reshape(-1, *matrices.shape[-2:]).to(torch.bfloat16 if matrices.is_cuda else torch.float32)
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x  # the smaller side is multiplied with itself
    x = x / (torch.linalg.matrix_norm(x.float(), keepdim=True) + 1e-7).to(x.dtype)
    for _ in range(steps):
        gram = torch.bmm(x, x.mT)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(matrices.dtype).reshape(matrices.shape)
