"""A linear map whose two gradients are computed apart: of its inputs at once, of its weight when there is time."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from fathom.kernels.gemm import outer, product

Owed = list[Callable[[], None]]  # each computes the gradient of one weight and adds it there


def linear_owed(
    x: Float[Tensor, "*N I"], weight: Float[Tensor, "O I"], bias: Float[Tensor, " O"] | None, owed: Owed
) -> Float[Tensor, "*N O"]:
    """x @ weight.T + bias; the backward pass leaves the gradient of `weight` as one more entry of `owed`.

    So a pipeline can send the gradient of the inputs on first, and fill a wait with the rest (V3 3.2.1).
    """
    autocast = torch.is_autocast_enabled(x.device.type)
    dtype = torch.get_autocast_dtype(x.device.type) if autocast else x.dtype
    with torch.autocast(x.device.type, enabled=False):
        out: Tensor = _LinearOwed.apply(x.flatten(0, -2).to(dtype), weight, owed)  # pyright: ignore
        out = out.view(*x.shape[:-1], -1)
        return out if bias is None else out + bias.to(dtype)


class _LinearOwed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, owed: Owed) -> Tensor:
        ctx.save_for_backward(x)
        ctx.weight, ctx.owed = weight, owed  # the parameter itself: recomputation saves a stand-in, whose .grad is lost
        return torch.mm(x, weight.to(x.dtype).T)  # what recomputation may keep; it cannot where memory is handed in

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (x,), weight = ctx.saved_tensors, ctx.weight
        grad = grads[0].contiguous()

        def pay() -> None:
            add_gradient(weight, outer(x, grad).T)

        ctx.owed.append(pay)
        return product(grad, weight.to(grad.dtype)), None, None


@torch.no_grad()
def add_gradient(weight: Tensor, gradient: Tensor) -> None:
    """Add to `weight.grad`, in its precision."""
    if weight.grad is None:
        weight.grad = gradient.to(weight.dtype, copy=True, memory_format=torch.contiguous_format)
    else:
        weight.grad += gradient
