"""RMSNorm with a backward pass of its own: the composite one walks memory three times as often on a CPU."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable


def rms_norm(x: Float[Tensor, "*N D"], weight: Float[Tensor, " D"], eps: float) -> Float[Tensor, "*N D"]:
    """Divide each row by its root mean square and multiply by `weight`."""
    if x.is_cuda or not torch.is_grad_enabled():
        return F.rms_norm(x, (x.shape[-1],), weight.to(x.dtype), eps)
    return _RMSNorm.apply(x, weight, eps)  # pyright: ignore[reportReturnType]


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        inverse = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        inverse = inverse.square_().div_(x.shape[-1]).add_(eps).rsqrt_()  # (*N, 1)
        ctx.save_for_backward(x, weight, inverse)
        return x * inverse * weight

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight, inverse = ctx.saved_tensors
        (grad,) = grads
        normed = x * inverse
        grad_weight = (grad * normed).flatten(0, -2).sum(0)
        scaled = grad * weight
        along = (scaled * normed).mean(-1, keepdim=True)  # the part of the gradient that would change the row's norm
        return scaled.addcmul_(normed, along, value=-1).mul_(inverse), grad_weight, None
