"""All experts of a layer as one node of the graph: grouped products with offsets that stay on the device."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from fathom.kernels.activation import through_swiglu, weighted_swiglu
from fathom.kernels.permute import Permutation, permutation, permute, permute_weights, unpermute, unpermute_weights


def through_grouped_mm(
    x: Float[Tensor, "N D"],
    experts: Int[Tensor, "N K"],
    weights: Float[Tensor, "N K"],
    gate_up: Float[Tensor, "E M2 D"],
    down: Float[Tensor, "E D M"],
) -> Float[Tensor, "N D"]:
    """`grouped_swiglu` in bfloat16 on a GPU, with the activation computed again in the backward pass."""
    return _Experts.apply(x, weights, gate_up, down, *permutation(experts, len(gate_up)))  # pyright: ignore


class _Experts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor, *where: Tensor) -> Tensor:
        p = Permutation(*where)
        narrow = torch.bfloat16 if x.is_cuda else x.dtype  # what grouped_mm takes
        w_in, w_out, ends = gate_up.to(narrow), down.to(narrow), p.offsets[1:]
        rows = permute(x.to(narrow), p)
        hidden = F.grouped_mm(rows, w_in.transpose(1, 2), offs=ends)
        row_weight = permute_weights(weights, p)
        out = F.grouped_mm(weighted_swiglu(hidden, row_weight), w_out.transpose(1, 2), offs=ends)
        ctx.save_for_backward(rows, hidden, row_weight, w_in, w_out, *where)
        ctx.dtypes = weights.dtype, gate_up.dtype, down.dtype
        return unpermute(out, p).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        rows, hidden, row_weight, w_in, w_out, *where = ctx.saved_tensors
        p, of_weights, of_gate_up, of_down = Permutation(*where), *ctx.dtypes
        ends = p.offsets[1:]
        grad_out = permute(grads[0].to(rows.dtype), p)
        grad_activation = F.grouped_mm(grad_out, w_out, offs=ends)
        activation, grad_row_weight, grad_hidden = through_swiglu(hidden, grad_activation, row_weight)
        grad_down = F.grouped_mm(grad_out.T, activation, offs=ends).to(of_down)
        grad_gate_up = F.grouped_mm(grad_hidden.T, rows, offs=ends).to(of_gate_up)
        grad_x = unpermute(F.grouped_mm(grad_hidden, w_in, offs=ends), p).to(grads[0].dtype)
        grad_weights = unpermute_weights(grad_row_weight, p).to(of_weights)
        return grad_x, grad_weights, grad_gate_up, grad_down, *(None for _ in where)
