"""Context parallelism: every row is spread over processes, and each attends with its own queries to all keys.

A row of S places is cut into 2 x c equal pieces, and process r holds pieces r and 2c - 1 - r, an early and a late one,
T = S / c places together: under a causal mask every process has equally many query-key pairs, S (S + 1) / 2c. What a
key is made of is exchanged once a layer: MLA's latents, one for all heads, or GQA's keys and values.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor
from torch.autograd.function import once_differentiable

from fathom.kernels.attention import expanded_attention
from fathom.parallel.mesh import Axis

collectives = torch.ops._c10d_functional


def pieces_of(axis: Axis) -> tuple[int, int]:
    """The early and the late piece of a row that this process holds."""
    return axis.rank, 2 * axis.size - 1 - axis.rank


def places_of(length: int, axis: Axis) -> Int[Tensor, " T"]:
    """The places of a row of `length` that this process holds, in order.

    Raises ValueError where the row does not divide into pieces.
    """
    if length % (2 * axis.size):
        raise ValueError(
            f"rows of {length} tokens do not divide into the {2 * axis.size} pieces of context={axis.size}; choose a "
            f"multiple of {2 * axis.size}"
        )
    return torch.arange(length).view(2 * axis.size, -1)[list(pieces_of(axis))].flatten()


def whole_rows(held: Shaped[Tensor, "B T *W"], axis: Axis, kind: str) -> Shaped[Tensor, "B S *W"]:
    """The rows of which every process holds two pieces; a gradient goes back to those who hold its places.

    `kind` says what is held, for the count of bytes.
    """
    if axis.size == 1:
        return held
    gathered: Tensor = _Gather.apply(held.contiguous(), axis, kind)  # pyright: ignore[reportAssignmentType]
    pieces = gathered.unflatten(2, (2, -1))  # (c, B, 2, T/2, *W)
    ordered = torch.cat((pieces[:, :, 0], pieces[:, :, 1].flip(0)))  # (2c, B, T/2, *W)
    return ordered.transpose(0, 1).flatten(1, 2)


class _Gather(torch.autograd.Function):
    """(c, ...) of all processes' tensors; backward, each receives the sum of the gradients of its own."""

    @staticmethod
    def forward(ctx: Any, held: Tensor, axis: Axis, kind: str) -> Tensor:
        ctx.axis, ctx.kind = axis, kind
        assert axis.group is not None
        gathered = collectives.wait_tensor(collectives.all_gather_into_tensor(held, axis.size, axis.group.group_name))
        axis.sent[kind] += held.nbytes * (axis.size - 1)
        return gathered.unflatten(0, (axis.size, -1))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (grad,) = grads
        axis: Axis = ctx.axis
        assert axis.group is not None
        own = collectives.wait_tensor(
            collectives.reduce_scatter_tensor(grad.flatten(0, 1).contiguous(), "sum", axis.size, axis.group.group_name)
        )
        axis.sent[f"{ctx.kind} gradient"] += own.nbytes * (axis.size - 1)
        return own, None, None


def row_attention(
    q: Float[Tensor, "B T H K"],
    k: Float[Tensor, "B S G K"],
    v: Float[Tensor, "B S G V"],
    scale: float,
    mask: Bool[Tensor, "B T S"] | None,
    axis: Axis,
) -> Float[Tensor, "B T H V"]:
    """Attention of the held queries over whole rows; causal when no `mask` says which keys a query sees.

    Each piece meets only the keys up to its own end, so that together they cost (S / 2c)^2 (2c + 1) pairs everywhere.
    """
    if axis.size == 1:
        return expanded_attention(q, k, v, scale, mask)
    length = q.shape[1] // 2
    out: list[Tensor] = []
    for half, piece in enumerate(pieces_of(axis)):
        held, seen = slice(half * length, (half + 1) * length), slice(0, (piece + 1) * length)
        visible = causal_mask(length, piece, q.device).expand(len(q), -1, -1) if mask is None else mask[:, held, seen]
        out.append(expanded_attention(q[:, held], k[:, seen], v[:, seen], scale, visible))
    return torch.cat(out, dim=1)


def causal_mask(length: int, piece: int, device: torch.device) -> Bool[Tensor, "T S"]:
    """True where a place of a row's `piece` may see one of the S = (piece + 1) x length up to its end."""
    place = torch.arange(length, device=device).unsqueeze(1) + piece * length
    return place >= torch.arange((piece + 1) * length, device=device)
