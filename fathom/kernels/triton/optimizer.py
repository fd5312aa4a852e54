"""AdamW over many tensors in one launch (twin of `fathom.kernels.optimizer.adamw_many_`)."""

from collections.abc import Sequence
from itertools import accumulate

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 2048  # numbers of one program


def adamw_many_(
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    *,
    step: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    seed: int | None = None,
) -> None:
    """Twin of the definition of the same name.

    Parameters are float32 and stand in memory as their moments do; lists of other precisions, or mixed ones, raise
    ValueError.
    """
    if not parameters:
        return
    gradients = [
        g if g.stride() == p.stride() else _laid_out_as(p, g) for p, g in zip(parameters, gradients, strict=True)
    ]
    for tensors, name, allowed in (
        (parameters, "parameters", (torch.float32,)),
        (gradients, "gradients", (torch.float32, torch.bfloat16)),
        ((*exp_avgs, *exp_avg_sqs), "moments", (torch.float32, torch.bfloat16)),
    ):
        kinds = {t.dtype for t in tensors}
        if len(kinds) > 1 or not kinds <= set(allowed):
            raise ValueError(
                f"{name} are {sorted(str(kind) for kind in kinds)}; all of one launch must be one of "
                f"{[str(kind) for kind in allowed]}"
            )
    device = parameters[0].device
    blocks = [0, *accumulate(triton.cdiv(p.numel(), BLOCK) for p in parameters)]
    columns = [[t.data_ptr() for t in tensors] for tensors in (parameters, gradients, exp_avgs, exp_avg_sqs)]
    table = torch.tensor([*columns, [p.numel() for p in parameters], blocks[:-1]], dtype=torch.int64)
    if device.type == "cuda":  # from pinned memory, so that the host need not wait
        table = table.pin_memory().to(device, non_blocking=True)
    if not blocks[-1]:
        return
    short = exp_avgs[0].dtype == torch.bfloat16
    _update[(blocks[-1],)](
        table, len(parameters), lr, beta1, beta2, eps, 1 - lr * weight_decay, 1 - beta1**step, 1 - beta2**step,
        0 if seed is None else seed & 0x7FFFFFFF,
        HALF_GRADIENT=gradients[0].dtype == torch.bfloat16, HALF_MOMENTS=short, BY_CHANCE=short and seed is not None,
        SEARCH=len(parameters).bit_length(),
        ALIGNED=all(address % 16 == 0 for column in columns for address in column), BLOCK=BLOCK, num_warps=4,
    )  # fmt: skip


def _laid_out_as(parameter: Tensor, gradient: Tensor) -> Tensor:
    return torch.empty_like(parameter, dtype=gradient.dtype).copy_(gradient)


@triton.jit
def _wide(bits):
    """The float32 whose upper half these 16 bits are."""
    return (bits.to(tl.int32) << 16).to(tl.float32, bitcast=True)


@triton.jit
def _narrow(x, chance, BY_CHANCE: tl.constexpr):
    """The 16 bits of x in bfloat16: the nearest, ties to even, or by chance."""
    bits = x.to(tl.int32, bitcast=True)
    added = chance if BY_CHANCE else 0x7FFF + ((bits >> 16) & 1)
    finite = (bits & 0x7F800000) != 0x7F800000
    kept = tl.where((bits & 0x7FFFFFFF) > 0x7F800000, bits | 0x400000, bits)  # a NaN stays one
    return (tl.where(finite, bits + added, kept) >> 16).to(tl.int16)


@triton.jit(do_not_specialize=["lr", "correction1", "correction2", "seed"])
def _update(
    table, count, lr, beta1, beta2, eps, decay, correction1, correction2, seed,
    HALF_GRADIENT: tl.constexpr, HALF_MOMENTS: tl.constexpr, BY_CHANCE: tl.constexpr, SEARCH: tl.constexpr,
    ALIGNED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One block of one tensor; which tensor is found by bisection of the blocks at which they begin."""
    block = tl.program_id(0).to(tl.int64)
    starts = table + 5 * count
    low = 0
    high = count
    for _ in range(SEARCH):
        middle = (low + high) // 2
        below = tl.load(starts + middle, mask=middle < count, other=0) <= block
        wide = high - low > 1
        low = tl.where(wide & below, middle, low)
        high = tl.where(wide & (below == 0), middle, high)
    start = (block - tl.load(starts + low)) * BLOCK
    left = tl.load(table + 4 * count + low) - start
    places = table + low
    if left >= BLOCK:  # without a mask, so that the compiler moves 16 bytes at a time
        _update_block(
            places,
            count,
            start,
            None,
            lr,
            beta1,
            beta2,
            eps,
            decay,
            correction1,
            correction2,
            seed,
            block,
            HALF_GRADIENT,
            HALF_MOMENTS,
            BY_CHANCE,
            ALIGNED,
            BLOCK,
        )
    else:
        _update_block(
            places,
            count,
            start,
            tl.arange(0, BLOCK) < left,
            lr,
            beta1,
            beta2,
            eps,
            decay,
            correction1,
            correction2,
            seed,
            block,
            HALF_GRADIENT,
            HALF_MOMENTS,
            BY_CHANCE,
            ALIGNED,
            BLOCK,
        )


@triton.jit
def _pointer(place, start, TYPE: tl.constexpr, ALIGNED: tl.constexpr, BLOCK: tl.constexpr):
    """Where the numbers of a block are, of the tensor whose address stands at `place`."""
    base = tl.load(place).to(tl.pointer_type(TYPE))
    if ALIGNED:
        base = tl.multiple_of(base, 16)
    return base + start + tl.arange(0, BLOCK)


@triton.jit
def _read(pointer, mask, HALF: tl.constexpr):
    x = tl.load(pointer, mask=mask)
    return _wide(x) if HALF else x


@triton.jit
def _update_block(
    places, count, start, inside, lr, beta1, beta2, eps, decay, correction1, correction2, seed, block,
    HALF_GRADIENT: tl.constexpr, HALF_MOMENTS: tl.constexpr, BY_CHANCE: tl.constexpr, ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    parameter = _pointer(places, start, tl.float32, ALIGNED, BLOCK)
    of_gradient: tl.constexpr = tl.int16 if HALF_GRADIENT else tl.float32
    of_moments: tl.constexpr = tl.int16 if HALF_MOMENTS else tl.float32
    gradient = _read(_pointer(places + count, start, of_gradient, ALIGNED, BLOCK), inside, HALF_GRADIENT)
    first_at = _pointer(places + 2 * count, start, of_moments, ALIGNED, BLOCK)
    second_at = _pointer(places + 3 * count, start, of_moments, ALIGNED, BLOCK)
    first, second = _read(first_at, inside, HALF_MOMENTS), _read(second_at, inside, HALF_MOMENTS)
    value = tl.load(parameter, mask=inside) * decay
    first += (1 - beta1) * (gradient - first)
    second = beta2 * second + (1 - beta2) * gradient * gradient
    if HALF_MOMENTS:
        chance = tl.zeros((BLOCK,), tl.int32)
        if BY_CHANCE:
            chance = tl.randint(seed, block * BLOCK + tl.arange(0, BLOCK)).to(tl.int32, bitcast=True)
        tl.store(first_at, _narrow(first, chance & 0xFFFF, BY_CHANCE), mask=inside)
        tl.store(second_at, _narrow(second, (chance >> 16) & 0xFFFF, BY_CHANCE), mask=inside)
    else:
        tl.store(first_at, first, mask=inside)
        tl.store(second_at, second, mask=inside)
    value -= lr / correction1 * first / (tl.sqrt(second / correction2) + eps)
    tl.store(parameter, value, mask=inside)
