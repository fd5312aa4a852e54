"""The two layers that everything else is made of: a linear map and an RMSNorm."""

from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fathom.kernels import gemm
from fathom.kernels.fp8 import Fp8Layer
from fathom.kernels.fp8_linear import fp8_linear
from fathom.kernels.norm import add_rms_norm, rms_norm
from fathom.kernels.owed import Owed, linear_owed


class GradientPath(Protocol):
    """Part of a weight that is trained apart from it."""

    def gradient_path(self, x: Float[Tensor, "*N I"]) -> Float[Tensor, "*N O"]:
        """Zeros, whose gradient is the part's."""
        ...


class Linear(nn.Linear):
    """torch's linear map, by the faster product of this processor, or with FP8 inputs."""

    fp8: Fp8Layer | None = None  # set by `precision.use_fp8`
    owed: Owed | None = None  # where the gradient of the weight waits; set by `pipeline.defer_weight_gradients`
    adapter: "GradientPath | None" = None  # set by `lora.adapt`

    def forward(self, input: Float[Tensor, "*N I"]) -> Float[Tensor, "*N O"]:
        if self.adapter is not None and torch.is_grad_enabled():
            return gemm.linear(input, self.weight, self.bias) + self.adapter.gradient_path(input)
        if self.fp8 is not None:
            return fp8_linear(input, self.weight, self.bias, self.fp8)
        if self.owed is not None and torch.is_grad_enabled():
            return linear_owed(input, self.weight, self.bias, self.owed)
        return gemm.linear(input, self.weight, self.bias)


def linear(inputs: int, outputs: int, bias: bool = False) -> Linear:
    """A linear map, without bias unless asked."""
    return Linear(inputs, outputs, bias=bias)


class RMSNorm(nn.Module):
    """Root-mean-square normalisation with a learned gain."""

    def __init__(self, width: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Float[Tensor, "*N D"]) -> Float[Tensor, "*N D"]:
        return rms_norm(x, self.weight, self.eps)

    def behind(
        self, x: Float[Tensor, "*N D"], more: Float[Tensor, "*N D"]
    ) -> tuple[Float[Tensor, "*N D"], Float[Tensor, "*N D"]]:
        """x + more, and that normalised."""
        if x.is_cuda and x.dtype == more.dtype and torch.is_grad_enabled():
            return add_rms_norm(x, more, self.weight, self.eps)
        x = x + more
        return x, self(x)
