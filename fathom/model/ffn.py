"""The dense feed-forward layer: SwiGLU."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from fathom.kernels.activation import weighted_swiglu
from fathom.model.linear import linear


class SwiGLU(nn.Module):
    """down(silu(gate x) * up x), gate and up in one product."""

    def __init__(self, hidden_size: int, width: int) -> None:
        super().__init__()
        self.gate_up = linear(hidden_size, 2 * width)
        self.down = linear(width, hidden_size)

    def forward(self, x: Float[Tensor, "*N D"]) -> Float[Tensor, "*N D"]:
        hidden = self.gate_up(x)
        if hidden.is_cuda:
            return self.down(weighted_swiglu(hidden.flatten(0, -2)).unflatten(0, x.shape[:-1]))
        gate, up = hidden.chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)
