"""Where a chain of element-wise operations becomes one kernel: torch.compile, on a GPU.

Only such pure functions of tensors are compiled, never a layer or a model: whatever spreads, recomputes, defers or
quantises layers stays plain code, all layers of a model share one compiled function, and nothing breaks a graph.
"""

import functools
import inspect
from collections.abc import Callable
from importlib import import_module
from typing import Literal, ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")

Fusing = Literal["auto", "on", "off"]

WIDTHS = 64  # versions of one function, by widths, that are kept; those of other numbers of rows share one

_chosen: list[Fusing] = ["auto"]  # of this process: passes backward run in threads of their own


def fuse(fusing: Fusing) -> None:
    """From now on compile fused functions on GPUs alone ("auto"), on every device ("on") or never ("off")."""
    _chosen[0] = fusing


def is_fused(x: Tensor) -> bool:
    """Whether functions of this tensor are compiled."""
    return x.is_cuda if _chosen[0] == "auto" else _chosen[0] == "on"


def fused(definition: Callable[P, R]) -> Callable[P, R]:
    """Compile a function where its first tensor `is_fused`; elsewhere, and inside another compiled one, call it."""

    @functools.wraps(definition)
    def chosen(*args: P.args, **kwargs: P.kwargs) -> R:
        first = args[0]
        if torch.compiler.is_compiling() or not (isinstance(first, Tensor) and is_fused(first)):
            return definition(*args, **kwargs)
        return _compiled(definition)(*args, **kwargs)

    return chosen


@functools.cache
def _compiled(definition: Callable[P, R]) -> Callable[P, R]:
    # widths of weights stay fixed and a number of rows that changes is compiled once more, for all numbers
    dynamo = import_module("torch._dynamo").config
    dynamo.recompile_limit = max(dynamo.recompile_limit, WIDTHS)
    return torch.compile(inspect.unwrap(definition), fullgraph=True)
