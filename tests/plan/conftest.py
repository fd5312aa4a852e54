"""The real training step of a GPU, played without one: no tensor has memory, and every allocation is counted.

Our kernels' twins run as they are, with their allocations and with all that they save for the backward pass; only
their launches do nothing. A compiled function allocates what it returns.
"""

import weakref
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack
from torch.utils._pytree import tree_leaves

from fathom.config import ModelConfig, OptimizerConfig
from fathom.kernels import choices, fuse, gemm
from fathom.model import Transformer
from fathom.parallel.world import World
from fathom.text.packing import Batch
from fathom.train import step
from fathom.train.loss import Denominators, language_losses
from fathom.train.step import Rates, TrainState, train_step

BLOCK = 512  # bytes that CUDA's allocator rounds up to


@dataclass(frozen=True)
class Played:
    """Bytes: at the peak of a step, kept from its forward to its backward pass, and held between steps."""

    peak: int
    kept: int
    state: int


Play = Callable[..., Played]


@pytest.fixture
def play_step(monkeypatch: pytest.MonkeyPatch) -> Play:
    """`play_step(config, rows, seq_len, moments)`: the second step of a run, as later ones are."""
    pytest.importorskip("triton")
    from triton.runtime.interpreter import InterpretedFunction
    from triton.runtime.jit import JITFunction

    monkeypatch.setattr(gemm, "MKL_IS_SLOW", False)  # oneDNN's own products are for CPUs
    monkeypatch.setattr(choices, "torch_wins", frozenset)  # no table: the twins are taken
    monkeypatch.setattr(fuse, "_compiled", _Compiled)
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda _: True), raising=False)  # in backward passes too
    monkeypatch.setattr(
        step, "forget_gradients", lambda optimizer, _: optimizer.zero_grad(set_to_none=True)
    )  # as there
    for kernel in (InterpretedFunction, JITFunction):
        monkeypatch.setattr(kernel, "run", lambda *_, **__: None)
    return _play


def _play(config: ModelConfig, rows: int, seq_len: int, moments: str = "bfloat16") -> Played:
    world, counter = World(0, 1, torch.device("cpu")), _Counter()
    kept = 0
    with ExitStack() as stack:
        for mode in (FakeTensorMode(allow_non_fake_inputs=True), counter, _AsOnGPU()):
            stack.enter_context(mode)
        model = Transformer(config)
        state = TrainState.start(model, OptimizerConfig(moments=moments))  # pyright: ignore[reportArgumentType]
        batch = _batch(rows, seq_len)
        denominators = Denominators.of([batch], len(model.mtp), world)

        def losses_of(micro_batch: Batch) -> Any:
            nonlocal kept
            before = counter.now
            with _autocast_of_gpu():
                losses = language_losses(model, micro_batch, denominators, 0.3, world.device)
            kept = counter.now - before
            return losses

        for _ in range(2):
            counter.peak = 0
            train_step(state, [batch], losses_of, Rates(1e-3, 1.0, 1e-3), world, torch.bfloat16)
        return Played(counter.peak, kept, counter.now)


@contextmanager
def _autocast_of_gpu() -> Generator[None]:
    """What code asks for that reads a GPU's autocast; the one in force is the CPU's, whose tensors these are."""
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    torch.set_autocast_enabled("cuda", True)
    yield
    torch.set_autocast_enabled("cuda", False)


def _batch(rows: int, seq_len: int) -> Batch:
    zeros = np.zeros((rows, seq_len), np.int64)
    return Batch(zeros, zeros, np.ones(zeros.shape, np.float32), zeros, zeros)


class _Counter(TorchDispatchMode):
    """Adds up the storages that are alive, and answers what only values could tell."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = 0  # compiled functions under way
        self.alive: dict[int, int] = {}
        self.now = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = self._run(func, args, kwargs or {})
        if not self.inside:
            self.note(out)
        return out

    def note(self, out: Any) -> None:
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._note(tensor.untyped_storage())

    def _run(self, func: Any, args: Any, kwargs: Any) -> Any:
        aten = torch.ops.aten
        if func is aten._local_scalar_dense.default:
            return 1.0 if args[0].dtype.is_floating_point else 1
        if func is aten.nonzero.default:  # every place has a weight
            return args[0].new_empty((args[0].numel(), 1), dtype=torch.int64)
        if func is aten.bincount.default:
            return args[0].new_empty(kwargs["minlength"] if "minlength" in kwargs else args[2], dtype=torch.int64)
        if func is aten.mm.dtype:  # of a GPU alone
            return args[0].new_empty(args[0].shape[0], args[1].shape[1], dtype=args[2])
        return func(*args, **kwargs)

    def _note(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self.alive:
            self.alive[key] = -(-storage.nbytes() // BLOCK) * BLOCK
            self.now += self.alive[key]
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._free, key)

    def _free(self, key: int) -> None:
        self.now -= self.alive.pop(key)


class _AsOnGPU(TorchFunctionMode):
    """Takes the paths of a GPU, with kernels that keep what CUDA's and cuDNN's keep."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.Tensor.data_ptr:
            return 0
        if func is F.scaled_dot_product_attention:
            return _Attention.apply(*args[:3])
        return func(*args, **kwargs)


class _Compiled:
    """A function as a compiler makes it: it keeps what it was given, and the rest it computes again."""

    def __init__(self, definition: Callable[..., Any]) -> None:
        self.definition = definition

    def __call__(self, *args: Any) -> Any:
        with_gradient = torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in args)
        return _Recomputed.apply(self.definition, *args) if with_gradient else _fused(self.definition, *args)


def _fused(function: Callable[..., Any], *args: Any) -> Any:
    """Its result, with nothing counted but that."""
    counter = next(mode for mode in _get_current_dispatch_mode_stack() if isinstance(mode, _Counter))
    counter.inside += 1
    out = function(*args)
    counter.inside -= 1
    counter.note(out)
    return out


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, definition: Callable[..., Any], *args: Any) -> Any:
        ctx.save_for_backward(*(x for x in args if isinstance(x, Tensor)))
        return _fused(definition, *args)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return None, *(torch.empty_like(x) for x in ctx.saved_tensors), None


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        batch, heads, time, _ = q.shape
        out = q.new_empty(batch, time, heads, v.shape[-1]).transpose(1, 2)
        ctx.save_for_backward(q, k, v, out, q.new_empty(batch, heads, time, dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        q, k, v, _, _ = ctx.saved_tensors
        _sum = q.new_empty(q.shape, dtype=torch.float32)  # cuDNN sums the queries' gradient there
        return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
