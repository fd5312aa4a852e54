"""A linear map whose three products take FP8 inputs (V3 3.3.1, Figure 6)."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from fathom.kernels.fp8 import Fp8Layer
from fathom.kernels.quant import quantize_columns, quantize_rows, quantize_rows_and_columns, round_e5m6
from fathom.kernels.scaled import scaled_product


def fp8_linear(
    x: Float[Tensor, "*N I"], weight: Float[Tensor, "O I"], bias: Float[Tensor, " O"] | None, layer: Fp8Layer
) -> Float[Tensor, "*N O"]:
    """x @ weight.T + bias in the precision of x, or of autocast where that is on.

    x and the gradient that comes back are quantised in strips of 128 as they are, the weight in blocks once per
    optimizer step. Between the passes x is kept in FP8, laid out for the weight's gradient, which is float32.
    Raises RuntimeError where a number is infinite or NaN, naming the tensor.
    """
    device = x.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
    rows = x.flatten(0, -2)
    out: Tensor = _Fp8Linear.apply(rows, weight, layer, dtype)  # pyright: ignore[reportAssignmentType]
    out = out.view(*x.shape[:-1], -1)
    return out if bias is None else out + bias.to(dtype)


class _Fp8Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, layer: Fp8Layer, dtype: torch.dtype) -> Tensor:
        w = layer.codes(weight)
        ctx.layer, ctx.weight, ctx.dtype = layer, w, x.dtype
        if layer.kept == "e4m3" and layer.fp8_wgrad and ctx.needs_input_grad[1]:
            codes, scales, *kept = quantize_rows_and_columns(x)
        else:
            codes, scales = quantize_rows(x)
            kept = [round_e5m6(x).to(dtype) if layer.kept == "e5m6" else x.to(dtype)]
        layer.check("input", x, codes, scales)
        ctx.save_for_backward(*kept)
        return scaled_product(codes, scales, w.codes, w.scales, dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        layer, w, grad = ctx.layer, ctx.weight, grads[0]
        if layer.fp8_wgrad:
            codes, scales, *columns = quantize_rows_and_columns(grad)
        else:
            codes, scales = quantize_rows(grad)
            columns = list[Tensor]()
        layer.check("output's gradient", grad, codes, scales)
        grad_x = scaled_product(codes, scales, w.codes_t, w.scales_t, ctx.dtype) if ctx.needs_input_grad[0] else None
        grad_weight = _weight_gradient(grad, columns, ctx.saved_tensors) if ctx.needs_input_grad[1] else None
        return grad_x, grad_weight, None, None


def _weight_gradient(grad: Tensor, columns: Sequence[Tensor], kept: Sequence[Tensor]) -> Tensor:
    """From codes of the input, from an input kept otherwise, or without FP8 (no codes of the gradient)."""
    if not columns:
        return torch.mm(grad.T, kept[0].to(grad.dtype)).float()
    codes, scales = kept if len(kept) == 2 else quantize_columns(kept[0])
    return scaled_product(columns[0], columns[1], codes, scales)
