"""Float32 products on a CPU, by whichever of torch's two libraries uses all of the processor.

MKL keeps to AVX2 on AMD processors that have AVX-512; oneDNN, which torch carries too, takes them for what they can do
and is up to twice as fast there. It compiles a kernel for every shape it meets, which costs a millisecond and half a
MiB, so rows are handed to it in powers of two. Elsewhere MKL is as fast, and it remains for small products.
"""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

LEAST_ROWS = 8  # of one call of oneDNN
LEAST_WORK = 1 << 20  # multiplications of one call: with fewer, MKL is sooner done


def _mkl_is_slow() -> bool:
    if not torch.backends.mkldnn.is_available() or torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    with suppress(OSError):
        return "AuthenticAMD" in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    return False


MKL_IS_SLOW = _mkl_is_slow()


def linear(
    x: Float[Tensor, "*N I"], weight: Float[Tensor, "O I"], bias: Float[Tensor, " O"] | None = None
) -> Float[Tensor, "*N O"]:
    """x @ weight.T + bias, with gradients."""
    if not _pays(x, weight, x.numel() // x.shape[-1]) or torch.is_autocast_enabled("cpu"):
        return F.linear(x, weight, bias)
    rows = x.flatten(0, -2)
    out: Tensor = _Linear.apply(rows, weight) if torch.is_grad_enabled() else product(rows, weight.T)  # pyright: ignore
    out = out.view(*x.shape[:-1], -1)
    return out if bias is None else out + bias


def product(a: Float[Tensor, "N I"], b: Float[Tensor, "I O"]) -> Float[Tensor, "N O"]:
    """a @ b, without gradient."""
    fast = _pays(a, b, a.shape[0])
    sizes = _cut(a.shape[0], b.numel()) if fast else ()
    if len(sizes) == 1:
        return _onednn(a, b.T)
    out = a.new_empty(a.shape[0], b.shape[1])
    if not fast:
        return torch.mm(a, b, out=out)  # with `out` autocast keeps its hands off
    for rows, place in zip(a.split(sizes), out.split(sizes), strict=True):
        place.copy_(_onednn(rows, b.T)) if _pays(rows, b, len(rows)) else torch.mm(rows, b, out=place)
    return out


def wide_product(a: Float[Tensor, "N I"], b: Float[Tensor, "I O"]) -> Float[Tensor, "N O"]:
    """a @ b in float32 or wider, whatever is multiplied: sums that are not rounded at their end; without gradient."""
    wide = torch.promote_types(a.dtype, torch.float32)
    if a.is_cuda and a.dtype != wide:
        with torch.autocast("cuda", enabled=False):
            return torch.mm(a, b, out_dtype=wide)
    return product(a.to(wide), b.to(wide))


def outer(a: Float[Tensor, "N I"], b: Float[Tensor, "N O"]) -> Float[Tensor, "I O"]:
    """a.T @ b, the sum of the outer products of N rows, without gradient."""
    total = a.new_zeros(a.shape[1], b.shape[1])
    add_outer_(total, a, b)
    return total


def add_outer_(total: Float[Tensor, "I O"], a: Float[Tensor, "N I"], b: Float[Tensor, "N O"]) -> None:
    """total += a.T @ b in place."""
    if not _pays(a, total, a.shape[0]):
        total.addmm_(a.T, b)
        return
    sizes = _cut(a.shape[0], total.numel())
    for left, right in zip(a.split(sizes), b.split(sizes), strict=True):
        if _pays(left, total, len(left)):
            total.add_(_onednn(left.T, right.T))
        else:
            total.addmm_(left.T, right)


def _pays(x: Tensor, matrix: Tensor, rows: int) -> bool:
    """Whether oneDNN is the faster one for `rows` rows against `matrix`."""
    return (
        MKL_IS_SLOW
        and rows >= LEAST_ROWS
        and rows * matrix.numel() >= LEAST_WORK
        and x.device.type == "cpu"
        and x.dtype == matrix.dtype == torch.float32
    )


def _cut(rows: int, elements: int) -> Sequence[int]:
    """`rows` as powers of two, the largest first, and last the few that are not worth a call of oneDNN."""
    sizes = [1 << bit for bit in reversed(range(rows.bit_length())) if rows >> bit & 1]
    few = [size for size in sizes if size < LEAST_ROWS or size * elements < LEAST_WORK]
    return [*sizes[: len(sizes) - len(few)], *([sum(few)] if few else [])]


def _onednn(x: Tensor, weight: Tensor) -> Tensor:
    """x @ weight.T"""
    return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")  # pyright: ignore[reportPrivateUsage]


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return product(x, weight.T)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight = ctx.saved_tensors
        grad = grads[0].contiguous()
        return product(grad, weight), outer(x, grad).T
