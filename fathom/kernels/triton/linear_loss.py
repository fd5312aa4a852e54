"""The loss of a row of logits and its gradient, a row in two walks (twin of `fathom.kernels.linear_loss.loss_rows`)."""

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

WIDE = 8192  # logits of one turn


def loss_rows(
    logits: Float[Tensor, "N V"], targets: Int[Tensor, " N"], weights: Float[Tensor, " N"], dtype: torch.dtype
) -> tuple[Float[Tensor, " N"], Int[Tensor, " N"], Float[Tensor, "N V"]]:
    """Twin of the definition of the same name."""
    rows, size = logits.shape
    loss, best = torch.empty_like(weights, dtype=torch.float32), torch.empty_like(targets)
    gradient = torch.empty_like(logits, dtype=dtype)
    if rows:
        block = min(triton.next_power_of_2(size), WIDE)
        _rows[(rows,)](
            logits, targets, weights, loss, best, gradient, size, logits.stride(0),
            BLOCK=block, num_warps=min(max(block // 512, 1), 16),
        )  # fmt: skip
    return loss, best, gradient


@triton.jit
def _rows(logits, targets, weights, loss, best, gradient, size, stride, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    logits += row * stride
    gradient += row * size
    lane = tl.arange(0, BLOCK)
    top = -float("inf")
    at = 0
    mass = tl.zeros((BLOCK,), tl.float32)
    for start in tl.range(0, size, BLOCK):
        x = tl.load(logits + start + lane, mask=start + lane < size, other=-float("inf"))
        higher = tl.max(x, 0)
        first = tl.min(tl.where(x == higher, start + lane, size), 0)
        at = tl.where(higher > top, first, at)
        new = tl.maximum(top, higher)
        mass = mass * tl.exp(top - new) + tl.exp(x - new)
        top = new
    total = tl.sum(mass, 0)
    target = tl.load(targets + row)
    weight = tl.load(weights + row)
    chosen = tl.load(logits + target)
    value = weight * (top + tl.log(total) - chosen)
    tl.store(loss + row, tl.where(weight == 0, 0.0, value))
    tl.store(best + row, at)
    share = weight / total
    for start in tl.range(0, size, BLOCK):
        column = start + lane
        x = tl.load(logits + column, mask=column < size, other=-float("inf"))
        p = tl.exp(x - top) * share
        tl.store(gradient + column, tl.where(column == target, p - weight, p), mask=column < size)
