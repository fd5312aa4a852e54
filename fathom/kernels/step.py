"""A pass of a few tokens through whole blocks in one call: the structures of `c/step.c`, field by field.

A block is some 190 calls of torch's operations, and at few rows they take as long as its weights take to arrive from
memory. Here all blocks are one call. A row's result does not depend on the rows beside it, to the last bit, nor on the
number of threads.
"""

import ctypes
from collections.abc import Sequence
from ctypes import CDLL, POINTER, byref, c_float, c_int, c_int64, c_void_p
from functools import cache

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from fathom.kernels.native import compiled

PANEL = 32  # columns; as in c/product.h


class Routing(ctypes.Structure):
    """How experts are chosen."""

    _fields_ = (
        *[(name, c_int64) for name in ("experts", "chosen", "shared", "groups", "groups_kept", "group_best")],
        *[(name, c_int64) for name in ("softmax", "biased", "normalised")],
        ("scale", c_float),
    )


class Shape(ctypes.Structure):
    """What all blocks of a model have in common."""

    _fields_ = (
        *[(name, c_int64) for name in ("width", "heads", "rank", "nope", "rope", "value", "query_rank")],
        *[(name, c_float) for name in ("root", "latent_root", "query_root", "scale")],
        ("routing", Routing),
    )


class BlockPointers(ctypes.Structure):
    """Where the matrices of a block lie, all in panels, and the cache of its layer."""

    _fields_ = (
        *[(name, c_void_p) for name in ("inputs", "queries", "latent_gain", "w_uk", "w_uv", "out")],
        *[(name, c_void_p) for name in ("router", "bias", "gate_up", "down")],
        ("inner", c_int64),
        ("pages", c_void_p),
    )


class Pass(ctypes.Structure):
    """The tokens of one pass, and where they stand."""

    _fields_ = (
        *[(name, c_int64) for name in ("tokens", "time", "columns", "page_size", "length")],
        *[(name, c_void_p) for name in ("positions", "entries", "table", "turns", "experts")],
        ("threads", c_int64),
    )


def has_step() -> bool:
    """Whether this machine has the compiled pass."""
    return compiled("step") is not None


def panels(matrix: Float[Tensor, "*E I O"]) -> Float[Tensor, "*E P I 32"]:
    """`matrix` as the pass reads it: `PANEL` columns at a time, zeros behind the last."""
    padded = F.pad(matrix.detach(), (0, -matrix.shape[-1] % PANEL))
    return padded.unflatten(-1, (-1, PANEL)).movedim(-2, -3).contiguous()


def run_blocks(shape: Shape, blocks: Sequence[BlockPointers], through: Pass, x: Float[Tensor, "N D"]) -> None:
    """Take `x` through blocks, in place. MemoryError where there is no room for what lies between products."""
    layers = (BlockPointers * len(blocks))(*blocks)
    if _library().run_blocks(byref(shape), layers, len(blocks), byref(through), x.data_ptr()):
        raise MemoryError(f"no memory is left for a pass of {through.tokens} tokens; decode fewer rows at once")


def norm_into(
    x: Float[Tensor, "N D"], root: float, gain: Float[Tensor, " D"] | None, out: Float[Tensor, "N E"], column: int = 0
) -> None:
    """x / hypot(|x|, root) * gain of each row, into `out` from `column` on; without `gain` where it is None."""
    rows, width = x.shape
    gains = None if gain is None else gain.data_ptr()
    to = out.data_ptr() + column * out.element_size()
    _library().run_norm(x.data_ptr(), rows, width, root, gains, to, out.shape[1])


def panel_product(
    x: Float[Tensor, "N I"], matrix: Float[Tensor, "P I 32"], outputs: int, threads: int
) -> Float[Tensor, "N O"]:
    """x @ the matrix that was laid out by `panels`."""
    rows, inputs = x.shape
    y = x.new_empty(rows, outputs)
    if _library().run_product(x.data_ptr(), rows, inputs, matrix.data_ptr(), outputs, y.data_ptr(), threads):
        raise MemoryError(f"no memory is left for a product of {rows} rows; decode fewer rows at once")
    return y


def _library() -> CDLL:
    library = compiled("step")
    assert library is not None  # `has_step` was asked
    return _typed(library)


@cache
def _typed(library: CDLL) -> CDLL:
    library.run_blocks.argtypes = (POINTER(Shape), POINTER(BlockPointers), c_int64, POINTER(Pass), c_void_p)
    library.run_norm.argtypes = (c_void_p, c_int64, c_int64, c_float, c_void_p, c_void_p, c_int64)
    library.run_norm.restype = None
    library.run_product.argtypes = (c_void_p, c_int64, c_int64, c_void_p, c_int64, c_void_p, c_int64)
    library.run_product.restype = library.run_blocks.restype = c_int
    return library
