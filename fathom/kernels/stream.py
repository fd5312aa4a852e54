"""Products of a few rows on a CPU, which take as long as their weights take to arrive from memory.

A matrix-vector product of MKL or oneDNN reads small matrices at a third of that speed. The kernel behind
`embedding_bag`, made to sum rows of tables too large for any cache, fetches ahead and keeps the sum in registers; a
product is such a sum, of the table's rows weighted by x. Which rows to sum is an argument, so that the chosen experts
of all tokens are one call, and a second kernel reads rows of 8-bit codes.
"""

from functools import lru_cache

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from fathom.kernels.gemm import product

FEW = 8  # rows up to which the sums beat a product, and experts in the order of tokens beat those in their own
STREAMS = "fbgemm" in torch.backends.quantized.supported_engines  # the library that has the kernels


def table(matrix: Float[Tensor, "I O"], int8: bool = False) -> Tensor:
    """`matrix` as it is streamed: in one piece, or each row as bytes with a float32 scale and offset behind them.

    The bytes err by half a 255th of the span of their row at most.
    """
    matrix = matrix.detach().contiguous()
    return torch.ops.quantized.embedding_bag_byte_prepack(matrix) if int8 else matrix


def stream(x: Float[Tensor, "N I"], table: Tensor) -> Float[Tensor, "N O"]:
    """x @ the matrix of `table`, without gradient. Among up to `FEW` rows no result depends on another row."""
    rows, inputs = x.shape
    if rows > FEW and table.dtype == torch.float32:
        return product(x, table)
    return _sums(table, *_every_row(rows, inputs), x.reshape(-1))


def stream_swiglu(
    x: Float[Tensor, "N D"], experts: Int[Tensor, "N K"], weights: Float[Tensor, "N K"], gate_up: Tensor, down: Tensor
) -> Float[Tensor, "N D"]:
    """`grouped_swiglu` over tables: D rows of `gate_up` and M rows of `down` for each expert in turn."""
    tokens, chosen = experts.shape
    if tokens <= FEW:
        hidden = _expert_sums(x.index_select(0, _repeated(tokens, chosen)), experts, gate_up)
        return _expert_sums(_activation(hidden, weights.view(-1, 1)), experts, down, chosen)
    # in the order of experts, so that the second token to choose one finds its weights in the cache
    ranked, order = experts.flatten().sort()
    token = order // chosen
    hidden = _expert_sums(x.index_select(0, token), ranked, gate_up)
    out = _expert_sums(_activation(hidden, weights.flatten().index_select(0, order).unsqueeze(1)), ranked, down)
    return torch.zeros_like(x).index_add_(0, token, out)


def _activation(hidden: Float[Tensor, "P M2"], weights: Float[Tensor, "P 1"]) -> Float[Tensor, "P M"]:
    gate, up = hidden.chunk(2, dim=-1)
    return F.silu(gate).mul_(up).mul_(weights)


def _expert_sums(x: Float[Tensor, "P I"], experts: Tensor, table: Tensor, together: int = 1) -> Float[Tensor, "G O"]:
    """Row p of x times its expert's matrix, of `together` consecutive rows the sum."""
    pairs, size = x.shape
    rows = torch.add(_range(size), experts.view(-1, 1), alpha=size).view(-1)  # every row of every pair's expert
    return _sums(table, rows, _starts(pairs // together, together * size), x.view(-1))


def _sums(
    table: Tensor, rows: Int[Tensor, " P"], starts: Int[Tensor, " N"], weights: Float[Tensor, " P"]
) -> Float[Tensor, "N O"]:
    """Sum n: the table's `rows` from starts[n] up to starts[n + 1], each times its weight."""
    if table.dtype == torch.uint8:
        sums = torch.ops.quantized.embedding_bag_byte_rowwise_offsets
        return sums(table, rows, starts, False, 0, False, weights)
    return torch.embedding_bag(table, rows, starts, False, 0, False, weights)[0]


@lru_cache(maxsize=512)
def _every_row(sums: int, size: int) -> tuple[Tensor, Tensor]:
    return _range(size).repeat(sums), _starts(sums, size)


@lru_cache(maxsize=512)
def _starts(sums: int, size: int) -> Tensor:
    return torch.arange(0, sums * size, size)


@lru_cache(maxsize=512)
def _range(size: int) -> Tensor:
    return torch.arange(size)


@lru_cache(maxsize=512)
def _repeated(tokens: int, times: int) -> Tensor:
    return torch.arange(tokens).repeat_interleave(times)
