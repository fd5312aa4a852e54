"""How Hopper's tensor cores add FP8 products, modelled bit by bit: about 14 bits, cut off (V3 3.3.2; ISCA'25 3.1)."""

import torch
from jaxtyping import Float
from torch import Tensor

DEPTH = 32  # products that one instruction adds
FRACTION_BITS = 13  # kept behind the leading place of the largest addend
LEAST_EXPONENT = -6  # of an e4m3 number; below it they are subnormal and keep this one
CELLS = 1 << 24  # products held in memory at a time


def tensor_core_product(
    a: Float[Tensor, "M K"], b: Float[Tensor, "N K"], promote_every: int | None = 128
) -> Float[Tensor, "M N"]:
    """a @ b.T of e4m3 numbers (any dtype that holds them) as the hardware adds it up.

    An instruction aligns 32 products and the running sum to the largest exponent among them, cuts each off 13 bits
    below it, and adds. The exponent of a product is the sum of its factors', whether or not their mantissas carry.
    With `promote_every` the running sum goes to a float32 register after that many products and starts again from
    zero, as CUDA cores do for V3; None leaves it in the tensor core for the whole inner width.
    Raises ValueError unless `promote_every` is a multiple of 32.
    """
    if promote_every is not None and (promote_every <= 0 or promote_every % DEPTH):
        raise ValueError(f"promote_every={promote_every} is no multiple of {DEPTH}, the products of one instruction")
    a, b = _padded(a.float()), _padded(b.float())
    rows = max(1, CELLS // (b.shape[0] * DEPTH))
    return torch.cat([_product(part, b, promote_every) for part in a.split(rows)])


def _padded(x: Tensor) -> Tensor:
    """Whole instructions; zeros change no sum."""
    return torch.nn.functional.pad(x, (0, -x.shape[1] % DEPTH))


def _product(a: Tensor, b: Tensor, promote_every: int | None) -> Tensor:
    total = torch.zeros(a.shape[0], b.shape[0], device=a.device)
    running = torch.zeros_like(total)
    for start in range(0, a.shape[1], DEPTH):
        running = _add(a[:, start : start + DEPTH], b[:, start : start + DEPTH], running)
        if promote_every and (start + DEPTH) % promote_every == 0:
            total, running = total + running, torch.zeros_like(running)
    return total + running


def _add(a: Tensor, b: Tensor, running: Tensor) -> Tensor:
    """One instruction: the sum of what each addend keeps above the last place of the largest."""
    products = a[:, None] * b[None]  # (M, N, 32), exact
    largest = (_exponent(a)[:, None] + _exponent(b)[None]).amax(-1)
    largest = torch.where(running == 0, largest, torch.maximum(largest, torch.frexp(running).exponent - 1))
    unit = torch.ldexp(torch.ones_like(running), largest - FRACTION_BITS)
    cut = (products / unit.unsqueeze(-1)).trunc_().sum(-1) + (running / unit).trunc_()  # whole numbers, exact
    return _cut_off(cut * unit)


def _exponent(x: Tensor) -> Tensor:
    """Of the power of two at or below each e4m3 number; zero has the least."""
    return torch.where(x == 0, LEAST_EXPONENT, torch.frexp(x).exponent - 1).clamp_(min=LEAST_EXPONENT)


def _cut_off(x: Tensor) -> Tensor:
    """x with 13 bits behind the leading one, the rest dropped: what the running sum's register holds."""
    return (x.view(torch.int32) & ~((1 << (23 - FRACTION_BITS)) - 1)).view(torch.float32)
