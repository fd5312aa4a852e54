"""Tokens to the processes that hold their experts and back, by all-to-all with whatever counts there are (V3 3.2.2)."""

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributed._functional_collectives import all_to_all_single_autograd  # pyright: ignore[reportPrivateUsage]

from fathom.kernels.quant import dequantize_rows, quantize_rows
from fathom.parallel.mesh import Axis

Apply = Callable[[Tensor, Tensor, Tensor], Tensor]


def through_experts(
    x: Float[Tensor, "N D"],
    experts: Int[Tensor, "N K"],
    weights: Float[Tensor, "N K"],
    n_experts: int,
    axis: Axis,
    apply: Apply,
    fp8: bool = False,
) -> Float[Tensor, "N D"]:
    """Every token's weighted sum over its K experts, which are spread in equal runs over the processes of `axis`.

    A token travels once to each process that holds one or more of its experts, however many; no token is dropped, and
    a process may get none. `apply(rows, experts, weights)` computes the sum over this process's own experts, numbered
    from 0; places whose expert lies elsewhere carry the number behind the last one, and weight zero. With `fp8` tokens
    go out as e4m3 in 1 x 128 strips under scales that are powers of two; what returns, and all gradients, are in the
    precision of x (V3 3.3.3).
    """
    own = n_experts // axis.size
    home = experts // own  # (N, K) the process of each expert
    goes = torch.zeros(len(x), axis.size, dtype=torch.bool, device=x.device).scatter_(1, home, True)
    process, token = goes.T.nonzero(as_tuple=True)  # in the order of processes
    out = goes.sum(0)
    back = _counts(out, axis)
    sizes = out.tolist(), back.tolist()
    here = home[token] == process.unsqueeze(1)  # (C, K)
    number = torch.where(here, experts[token] - own * process.unsqueeze(1), own)
    rows = x.index_select(0, token)
    rows = _travel_fp8(rows, *sizes, axis) if fp8 else _travel(rows, *sizes, axis, "dispatch")
    number = _travel(number.int(), *sizes, axis, "routes").long()
    shares = _travel(torch.where(here, weights.index_select(0, token), 0.0), *sizes, axis, "routes")
    results = _travel(apply(rows, number, shares), *reversed(sizes), axis, "combine")
    return torch.zeros_like(x).index_add(0, token, results.to(x.dtype))


def _counts(out: Int[Tensor, " R"], axis: Axis) -> Int[Tensor, " R"]:
    """How many rows each process will send here, told how many go to each."""
    back = torch.empty_like(out)
    dist.all_to_all_single(back, out, group=axis.group)
    axis.sent["routes"] += out.element_size() * (axis.size - 1)
    return back


def _travel(rows: Tensor, out: list[int], back: list[int], axis: Axis, kind: str) -> Tensor:
    """Rows for each process, in their order, against those of each process, with gradients the way back."""
    assert axis.group is not None
    _book(axis, kind, rows, out)
    arrived = all_to_all_single_autograd(rows.contiguous(), back, out, axis.group)
    if arrived.requires_grad:
        arrived.register_hook(lambda grad: _book(axis, f"{kind} gradient", grad, back))
    return arrived


def _book(axis: Axis, kind: str, rows: Tensor, counts: list[int]) -> None:
    """Count the rows that leave this process."""
    width = rows[:1].nbytes if len(rows) else 0
    axis.sent[kind] += width * (sum(counts) - counts[axis.rank])


def _travel_fp8(rows: Tensor, out: list[int], back: list[int], axis: Axis) -> Tensor:
    return cast(Tensor, _Fp8Travel.apply(rows, out, back, axis))


class _Fp8Travel(torch.autograd.Function):
    """Codes and scales travel instead of the rows; the gradient comes back as it is."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, out: list[int], back: list[int], axis: Axis) -> Tensor:
        ctx.way = out, back, axis
        codes, scales = quantize_rows(rows, power_of_two=True)
        arrived = _exchange(codes.view(torch.uint8), out, back, axis, "dispatch").view(codes.dtype)
        return dequantize_rows(arrived, _exchange(scales, out, back, axis, "dispatch")).to(rows.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        out, back, axis = ctx.way
        return _exchange(grads[0], back, out, axis, "dispatch gradient"), None, None, None


def _exchange(rows: Tensor, out: list[int], back: list[int], axis: Axis, kind: str) -> Tensor:
    """Rows for each process against those of each process, without gradient."""
    _book(axis, kind, rows, out)
    arrived = rows.new_empty(sum(back), *rows.shape[1:])
    dist.all_to_all_single(arrived, rows.contiguous(), back, out, group=axis.group)
    return arrived
