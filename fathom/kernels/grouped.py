"""Products whose rows are grouped by expert: every token reaches its experts, none is dropped."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from fathom.kernels.experts_mm import through_grouped_mm
from fathom.kernels.fuse import is_fused
from fathom.kernels.gemm import outer, product
from fathom.kernels.router import expert_load

DENSE_WORK = 1 << 20  # rows times elements of gate_up up to which sorting costs more than the work it saves


def grouped_swiglu(
    x: Float[Tensor, "N D"],
    experts: Int[Tensor, "N K"],
    weights: Float[Tensor, "N K"],
    gate_up: Float[Tensor, "E M2 D"],
    down: Float[Tensor, "E D M"],
    some_elsewhere: bool = False,
) -> Float[Tensor, "N D"]:
    """Sum over a token's K experts of weight * down(silu(gate x) * up x) (V3 eq. 12).

    The gate weight multiplies the activation, before the down projection, so that the router's gradient needs
    no expert output. Rows are sorted by expert: a loop of products on a CPU, `grouped_mm` on a GPU. A few rows
    without gradient pass every expert instead, which is sooner done on a CPU. With `some_elsewhere` the number E
    stands for an expert that is not here and adds nothing.
    """
    if not x.is_cuda:  # where shards are gathered in bfloat16; a product on a CPU wants two of one kind
        gate_up, down = gate_up.to(x.dtype), down.to(x.dtype)
    few = not (x.is_cuda or torch.is_grad_enabled()) and x.shape[0] * gate_up.numel() <= DENSE_WORK
    if few and not some_elsewhere:
        return _dense_swiglu(x, experts, weights, gate_up, down)
    if is_fused(x) and torch.is_grad_enabled() and not some_elsewhere:
        return through_grouped_mm(x, experts, weights, gate_up, down)
    order, load = sort_by_expert(experts, gate_up.shape[0], some_elsewhere)
    token = order // experts.shape[1]
    training = torch.is_grad_enabled() or torch.is_autocast_enabled("cuda")
    exact = x.dtype == gate_up.dtype == torch.float32 and not training  # for inference that was given such weights
    if x.is_cuda and not exact:
        return _grouped_mm_swiglu(x, order, token, load, weights, gate_up, down)
    if not torch.is_grad_enabled():
        return _sorted_swiglu(x, weights, gate_up, down, order, token, load.tolist())[0]
    return _GroupedSwiGLU.apply(x, weights, gate_up, down, order, token, load.tolist())  # pyright: ignore[reportReturnType]


def sort_by_expert(
    experts: Int[Tensor, "N K"], n_experts: int, some_elsewhere: bool = False
) -> tuple[Int[Tensor, " P"], Int[Tensor, " E"]]:
    """The places of `experts`, flattened, in the order of experts, and how many each has; see `grouped_swiglu`."""
    flat = experts.flatten()
    if not flat.is_cuda:
        order, load = flat.argsort(stable=True), torch.bincount(flat, minlength=n_experts)
    else:  # fewer bits are sooner sorted, and bincount would have the host wait
        narrow = torch.uint8 if n_experts < 256 else torch.int16
        order, load = flat.to(narrow).sort(stable=True).indices, expert_load(experts, n_experts + some_elsewhere)
    if some_elsewhere:  # reading how many are left makes a GPU's host wait, which knows them already
        load = load[:n_experts]
        order = order[: int(load.sum())]
    return order, load


def _dense_swiglu(x: Tensor, experts: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """Every token through every expert, with weight zero where it was not chosen: no sorting, two products."""
    gates = weights.new_zeros(x.shape[0], gate_up.shape[0]).scatter_(1, experts, weights)  # (N, E)
    gate, up = torch.matmul(x, gate_up.transpose(1, 2)).chunk(2, dim=-1)  # (E, N, M)
    return torch.bmm(F.silu(gate).mul_(up).mul_(gates.T.unsqueeze(-1)), down.transpose(1, 2)).sum(0)


def _grouped_mm_swiglu(
    x: Tensor, order: Tensor, token: Tensor, load: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor
) -> Tensor:
    """On a GPU: offsets stay on the device, so nothing waits for them. Computes in bfloat16."""
    offsets = load.cumsum(0).to(torch.int32)
    rows = x.index_select(0, token).bfloat16()
    hidden = F.grouped_mm(rows, gate_up.bfloat16().transpose(1, 2), offs=offsets)
    gate, up = hidden.chunk(2, dim=-1)
    activation = F.silu(gate) * up * weights.flatten().index_select(0, order).unsqueeze(-1).bfloat16()
    out = F.grouped_mm(activation, down.bfloat16().transpose(1, 2), offs=offsets)
    # grouped_mm's backward rejects an expanded gradient; index_add's is dense
    return torch.zeros_like(x).index_add(0, token, out.to(x.dtype))


def _sorted_swiglu(
    x: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor, order: Tensor, token: Tensor, load: list[int]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The result, and what its backward pass needs: rows, their weights, and the hidden layer before the activation."""
    rows = x.index_select(0, token)  # (N*K, D)
    row_weight = weights.to(x.dtype).flatten().index_select(0, order).unsqueeze(-1)
    hidden = _product(rows, gate_up.transpose(1, 2), load)  # (N*K, 2M)
    gate, up = hidden.chunk(2, dim=-1)
    out = _product(F.silu(gate).mul_(up).mul_(row_weight), down.transpose(1, 2), load)
    return torch.zeros_like(x).index_add_(0, token, out), rows, row_weight, hidden


class _GroupedSwiGLU(torch.autograd.Function):
    """One node in the graph instead of a dozen per expert; the activation is recomputed in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weights: Tensor,
        gate_up: Tensor,
        down: Tensor,
        order: Tensor,
        token: Tensor,
        load: list[int],
    ) -> Tensor:
        out, rows, row_weight, hidden = _sorted_swiglu(x, weights, gate_up, down, order, token, load)
        ctx.save_for_backward(rows, row_weight, hidden, gate_up, down, order, token)
        ctx.load, ctx.chosen = load, weights.shape
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        rows, row_weight, hidden, gate_up, down, order, token = ctx.saved_tensors
        load: list[int] = ctx.load
        grad_out = grads[0].index_select(0, token)  # (N*K, D)
        grad_weighted = _product(grad_out, down, load)  # (N*K, M)
        gate, up = hidden.chunk(2, dim=-1)
        sigmoid = gate.sigmoid()
        silu = gate * sigmoid
        activation = silu * up
        grad_down = _outer(grad_out, activation * row_weight, load)
        grad_weight = (grad_weighted * activation).sum(-1)
        grad_weighted.mul_(row_weight)
        grad_hidden = torch.empty_like(hidden)
        grad_gate, grad_up = grad_hidden.chunk(2, dim=-1)
        torch.mul(grad_weighted, silu, out=grad_up)
        # d silu = sigmoid + silu (1 - sigmoid)
        torch.mul(grad_weighted.mul_(up), sigmoid.addcmul_(silu, 1 - sigmoid), out=grad_gate)
        grad_gate_up = _outer(grad_hidden, rows, load)
        grad_rows = _product(grad_hidden, gate_up, load)
        grad_x = torch.zeros_like(grads[0]).index_add_(0, token, grad_rows)
        grad_weights = grad_weight.new_zeros(ctx.chosen.numel()).index_copy_(0, order, grad_weight)
        return grad_x, grad_weights.view(ctx.chosen), grad_gate_up, grad_down, None, None, None


def _product(rows: Float[Tensor, "P I"], matrices: Float[Tensor, "E I O"], load: list[int]) -> Float[Tensor, "P O"]:
    """Row block e times matrix e."""
    return torch.cat(
        [product(block, matrix) for block, matrix in zip(rows.split(load), matrices.unbind(), strict=True)]
    )


def _outer(left: Float[Tensor, "P O"], right: Float[Tensor, "P I"], load: list[int]) -> Float[Tensor, "E O I"]:
    """Row block e of `left`, transposed, times row block e of `right`."""
    blocks = zip(left.split(load), right.split(load), strict=True)
    return torch.stack([outer(b, a) for a, b in blocks]).transpose(1, 2)
