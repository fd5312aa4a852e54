"""Where an operation meets its faster self: the Triton twin of the same name, one folder down."""

import functools
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import ParamSpec, TypeVar

from torch import Tensor

from fathom.kernels import choices

GLUON = "3.6."  # the releases of Triton whose Gluon dialect our Hopper kernels are written in; it changes with each

P = ParamSpec("P")
R = TypeVar("R")


def speaks_gluon() -> bool:
    """Whether the Triton installed here compiles kernels in Gluon as ours are written."""
    try:
        return version("triton").startswith(GLUON)
    except PackageNotFoundError:
        return False


def twin(definition: Callable[P, R]) -> Callable[P, R]:
    """Call `fathom.kernels.triton.FILE.NAME` in place of `fathom.kernels.FILE.NAME` where the first tensor is on a GPU.

    The twin is imported at its first call, so that a machine without a GPU needs no Triton. `torch.compile` takes the
    choice as settled and traces on into the twin.
    """
    faster = _faster(definition)

    @functools.wraps(definition)
    def chosen(*args: P.args, **kwargs: P.kwargs) -> R:
        first = args[0]
        on_gpu = isinstance(first, Tensor) and first.is_cuda
        return faster()(*args, **kwargs) if on_gpu else definition(*args, **kwargs)

    return chosen


def fastest(definition: Callable[P, R]) -> Callable[P, R]:
    """As `twin`, unless this GPU's table of `fathom bench kernels` says that torch is faster at that size.

    Without a table the twin is called; nothing is timed on the way.
    """
    faster, name = _faster(definition), definition.__name__

    @functools.wraps(definition)
    def chosen(*args: P.args, **kwargs: P.kwargs) -> R:
        first = args[0]
        first = first[0] if isinstance(first, list) and first else first
        if not (isinstance(first, Tensor) and first.is_cuda):
            return definition(*args, **kwargs)
        table = choices.torch_wins()
        if table and (name, *choices.bucket(first)) in table:
            return definition(*args, **kwargs)
        return faster()(*args, **kwargs)

    return chosen


def _faster(definition: Callable[P, R]) -> Callable[[], Callable[P, R]]:
    """Finds the twin of a definition at its first call."""
    package, _, file = definition.__module__.rpartition(".")

    @functools.cache
    def faster() -> Callable[P, R]:
        return getattr(import_module(f"{package}.triton.{file}"), definition.__name__)

    # the mark that torch.compiler.assume_constant_result leaves, without the two seconds that importing dynamo takes
    setattr(faster, "_dynamo_marked_constant", True)  # noqa: B010
    return faster
