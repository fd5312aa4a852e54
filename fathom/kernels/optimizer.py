"""The optimizer's arithmetic on one tensor."""

from torch import Tensor


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
) -> None:
    """One AdamW update in place; moments may be stored in fewer bits than the float32 arithmetic.

    `step` counts from 1.
    """
    gradient = gradient.float()
    first = exp_avg.float().lerp_(gradient, 1 - beta1)
    second = exp_avg_sq.float().mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    exp_avg.copy_(first)
    exp_avg_sq.copy_(second)
    parameter.mul_(1 - lr * weight_decay)
    denominator = (second / (1 - beta2**step)).sqrt_().add_(eps)  # `second` may be the stored moment itself
    parameter.addcdiv_(first, denominator, value=-lr / (1 - beta1**step))
