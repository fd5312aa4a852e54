"""Tokens to their experts and back, with offsets that never leave the device."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fathom.kernels.dispatch import fastest


class Permutation(NamedTuple):
    """Where every pair of token and expert stands among P rows sorted by expert."""

    row: Int[Tensor, "N K"]  # of each pair, int32; -1 where the expert is not here
    order: Int[Tensor, " P"]  # the pair n K + k of each row, int32; -1 in rows that fill a group up
    offsets: Int[Tensor, " E1"]  # int32: group e is the rows from offsets[e] to offsets[e + 1], filling included


def row_count(pairs: int, n_experts: int, alignment: int) -> int:
    """Rows that suffice for any routing, a multiple of `alignment`."""
    most = pairs + (alignment - 1) * min(n_experts, pairs)
    return -(-most // alignment) * alignment


@fastest
def permutation(experts: Int[Tensor, "N K"], n_experts: int, alignment: int = 1) -> Permutation:
    """Sort pairs by expert, in the order of tokens within one; every group is filled up to a multiple of `alignment`.

    The number `n_experts` stands for an expert that is not here. P depends on shapes alone (`row_count`), so that no
    host waits; rows behind the last group are filling too.
    """
    flat = experts.flatten().long()
    count = torch.zeros(n_experts + 1, dtype=torch.long, device=flat.device).scatter_add_(
        0, flat, torch.ones_like(flat)
    )
    filled = -(-count[:n_experts] // alignment) * alignment
    offsets = torch.cat((filled.new_zeros(1), filled.cumsum(0)))
    sorted_pairs = flat.argsort(stable=True)
    before = count.cumsum(0) - count  # pairs of the experts before
    place = torch.arange(len(flat), device=flat.device) + (offsets - before)[flat[sorted_pairs]]
    place = torch.where(flat[sorted_pairs] < n_experts, place, -1)
    row = torch.empty_like(flat).scatter_(0, sorted_pairs, place)
    rows = row_count(len(flat), n_experts, alignment)
    # what is not here is written to a row too many
    order = torch.full((rows + 1,), -1, device=flat.device).scatter_(
        0, torch.where(place < 0, rows, place), sorted_pairs
    )
    return Permutation(row.int().view(experts.shape), order[:rows].int(), offsets.int())


@fastest
def permute(x: Float[Tensor, "N D"], p: Permutation) -> Float[Tensor, "P D"]:
    """Every row's token; zeros in rows that fill up."""
    rows = x.index_select(0, p.order.clamp(min=0) // p.row.shape[1])
    return rows.masked_fill((p.order < 0).unsqueeze(1), 0)


@fastest
def unpermute(rows: Float[Tensor, "P D"], p: Permutation) -> Float[Tensor, "N D"]:
    """Sum of the rows of every token, in float32 inside; what stands in filling rows does not count."""
    picked = rows.index_select(0, p.row.flatten().clamp(min=0)).unflatten(0, p.row.shape)
    return picked.float().masked_fill((p.row < 0).unsqueeze(-1), 0).sum(1).to(rows.dtype)


def permute_weights(weights: Float[Tensor, "N K"], p: Permutation) -> Float[Tensor, " P"]:
    """The gate weight of every row, zero in rows that fill up. Without gradient; see `unpermute_weights`."""
    return weights.flatten().index_select(0, p.order.clamp(min=0)).masked_fill(p.order < 0, 0)


def unpermute_weights(gradient: Float[Tensor, " P"], p: Permutation) -> Float[Tensor, "N K"]:
    """The gradient of `permute_weights`."""
    picked = gradient.index_select(0, p.row.flatten().clamp(min=0)).view(p.row.shape)
    return picked.masked_fill(p.row < 0, 0)
