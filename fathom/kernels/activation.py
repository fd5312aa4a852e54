"""SwiGLU with the gate weight of each row inside, forward and backward."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from fathom.kernels.dispatch import fastest


@fastest
def weighted_swiglu(
    hidden: Float[Tensor, "P M2"], row_weight: Float[Tensor, " P"] | None = None
) -> Float[Tensor, "P M"]:
    """silu(gate) * up, times the row's weight if there is one; gate is hidden's first half.

    Arithmetic is in float32, the result in hidden's precision.
    """
    gate, up = hidden.float().chunk(2, dim=-1)
    activation = F.silu(gate) * up
    return (activation if row_weight is None else activation * row_weight.float().unsqueeze(-1)).to(hidden.dtype)


@fastest
def through_swiglu(
    hidden: Float[Tensor, "P M2"],
    gradient: Float[Tensor, "P M"],
    row_weight: Float[Tensor, " P"] | None = None,
    scales: Float[Tensor, "P S"] | None = None,
) -> tuple[Float[Tensor, "P M"], Float[Tensor, " P"], Float[Tensor, "P M2"]]:
    """The weighted activation, computed again, and from its gradient those of the row weights and of hidden.

    With `scales` hidden is e4m3 codes with a scale for every 128 numbers of a row (`quantize_rows`). The activation and
    hidden's gradient come in the gradient's precision, the row weights' in float32.
    """
    if scales is not None:
        hidden = hidden.float() * scales.repeat_interleave(128, 1)[:, : hidden.shape[1]]
    gate, up = hidden.float().chunk(2, dim=-1)
    share, pull = 1.0 if row_weight is None else row_weight.float().unsqueeze(-1), gradient.float()
    sigmoid = gate.sigmoid()
    silu = gate * sigmoid
    activation = silu * up
    of_weight = (pull * activation).sum(-1)
    pull = pull * share
    of_gate = pull * up * (sigmoid + silu * (1 - sigmoid))
    of_hidden = torch.cat((of_gate, pull * silu), dim=-1)
    return (activation * share).to(gradient.dtype), of_weight, of_hidden.to(gradient.dtype)
