"""The routed experts with FP8 inputs to all their products (V3 3.3)."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from fathom.kernels.activation import through_swiglu
from fathom.kernels.fp8 import Fp8Layer
from fathom.kernels.gemm import outer
from fathom.kernels.grouped import sort_by_expert
from fathom.kernels.permute import Permutation, permutation, permute, permute_weights, unpermute, unpermute_weights
from fathom.kernels.quant import (
    quantize_columns,
    quantize_rows,
    quantize_rows_and_columns,
    quantize_swiglu,
    swiglu,
)
from fathom.kernels.scaled import grouped_scaled_outer, grouped_scaled_product


def fp8_grouped_swiglu(
    x: Float[Tensor, "N D"],
    experts: Int[Tensor, "N K"],
    weights: Float[Tensor, "N K"],
    gate_up: Float[Tensor, "E M2 D"],
    down: Float[Tensor, "E D M"],
    layer: Fp8Layer,
    some_elsewhere: bool = False,
) -> Float[Tensor, "N D"]:
    """`grouped_swiglu` as V3 computes it: sum over a token's K experts of weight * down(silu(gate x) * up x).

    Tokens on their way to the experts, and gradients on their way back, have scales that are powers of two. Kept
    for the backward pass are the tokens and the input of the activation, both in FP8; the activation is computed
    again. Results are in the precision of x, or of autocast where that is on; gradients of the weights are float32.
    Raises RuntimeError where a number is infinite or NaN, naming the tensor.
    """
    device = x.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
    p = _permutation(experts, gate_up.shape[0], some_elsewhere)
    return _Fp8Experts.apply(x, weights, gate_up, down, layer, dtype, *p)  # pyright: ignore[reportReturnType]


def _permutation(experts: Tensor, n_experts: int, some_elsewhere: bool) -> Permutation:
    """The rows of the experts that are here, and no others: products and strips of columns end with the last group."""
    if not some_elsewhere:
        return permutation(experts, n_experts)
    order, load = sort_by_expert(experts, n_experts, some_elsewhere)
    places = torch.arange(len(order), device=order.device, dtype=torch.int32)
    row = torch.full((experts.numel(),), -1, device=order.device, dtype=torch.int32).scatter_(0, order, places)
    return Permutation(row.view(experts.shape), order.int(), F.pad(load.cumsum(0), (1, 0)).int())


class _Fp8Experts(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weights: Tensor,
        gate_up: Tensor,
        down: Tensor,
        layer: Fp8Layer,
        dtype: torch.dtype,
        *where: Tensor,
    ) -> Tensor:
        p = Permutation(*where)
        offsets = p.offsets
        w_in, w_out = layer.codes(gate_up), layer.codes(down)
        row_weight = permute_weights(weights, p)
        rows = permute(x, p)
        codes, scales, *kept = quantize_rows_and_columns(rows, offsets, power_of_two=True)
        layer.check("input", rows, codes, scales)
        hidden = grouped_scaled_product(codes, scales, w_in.codes, w_in.scales, offsets, dtype)
        codes, scales = quantize_swiglu(hidden, row_weight)
        layer.check("activation", hidden if layer.watch is None else swiglu(hidden, row_weight), codes, scales)
        out = grouped_scaled_product(codes, scales, w_out.codes, w_out.scales, offsets, dtype)
        if not layer.fp8_wgrad:
            kept = [rows]
        ctx.save_for_backward(*quantize_rows(hidden), row_weight, *where, *kept)
        ctx.layer, ctx.weights, ctx.dtype, ctx.of_weights = layer, (w_in, w_out), dtype, weights.dtype
        return unpermute(out, p).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        layer, (w_in, w_out) = ctx.layer, ctx.weights
        hidden_codes, hidden_scales, row_weight, row, order, offsets, *kept = ctx.saved_tensors
        p = Permutation(row, order, offsets)
        grad_out = permute(grads[0], p)  # (P, D)
        codes, scales = quantize_rows(grad_out, power_of_two=True)
        layer.check("output's gradient", grad_out, codes, scales)
        grad_weighted = grouped_scaled_product(codes, scales, w_out.codes_t, w_out.scales_t, offsets, ctx.dtype)
        activation, grad_weight, grad_hidden = through_swiglu(hidden_codes, grad_weighted, row_weight, hidden_scales)
        codes, scales = quantize_rows(grad_hidden)
        layer.check("activation's gradient", grad_hidden, codes, scales)
        grad_rows = grouped_scaled_product(codes, scales, w_in.codes_t, w_in.scales_t, offsets, ctx.dtype)
        if layer.fp8_wgrad:
            grad_down = grouped_scaled_outer(
                *quantize_columns(grad_out, offsets, power_of_two=True), *quantize_columns(activation, offsets), offsets
            )
            grad_gate_up = grouped_scaled_outer(*quantize_columns(grad_hidden, offsets), kept[0], kept[1], offsets)
        else:
            grad_down = _grouped_outer(grad_out, activation, offsets)
            grad_gate_up = _grouped_outer(grad_hidden, kept[0], offsets)
        grad_x = unpermute(grad_rows, p).to(grads[0].dtype)
        grad_weights = unpermute_weights(grad_weight, p).to(ctx.of_weights)
        return grad_x, grad_weights, grad_gate_up, grad_down, None, None, *(None for _ in (row, order, offsets))


def _grouped_outer(left: Tensor, right: Tensor, offsets: Tensor) -> Float[Tensor, "E O I"]:
    """The weight's gradient without FP8: the rows of every expert, transposed, times rows."""
    if left.is_cuda:
        return F.grouped_mm(left.bfloat16().T, right.bfloat16(), offs=offsets[1:]).float()
    sizes = offsets.diff().tolist()
    blocks = zip(left.split(sizes), right.split(sizes), strict=True)
    return torch.stack([outer(a.contiguous(), b.contiguous()) for a, b in blocks])
