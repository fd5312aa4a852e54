"""The real training step of a GPU, played without one: no tensor has memory, and every allocation is counted."""

import weakref
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fathom.config import ModelConfig, OptimizerConfig
from fathom.kernels import gemm
from fathom.model import Transformer
from fathom.parallel.world import World
from fathom.text.packing import Batch
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
    monkeypatch.setattr(gemm, "MKL_IS_SLOW", False)  # oneDNN's own products are for CPUs
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
            losses = language_losses(model, micro_batch, denominators, 0.3, world.device)
            kept = counter.now - before
            return losses

        for _ in range(2):
            counter.peak = 0
            train_step(state, [batch], losses_of, Rates(1e-3, 1.0, 1e-3), world, torch.bfloat16)
        return Played(counter.peak, kept, counter.now)


def _batch(rows: int, seq_len: int) -> Batch:
    zeros = np.zeros((rows, seq_len), np.int64)
    return Batch(zeros, zeros, np.ones(zeros.shape, np.float32), zeros, zeros)


class _Counter(TorchDispatchMode):
    """Adds up the storages that are alive, and answers what only values could tell."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, int] = {}
        self.now = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = self._run(func, args, kwargs or {})
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._note(tensor.untyped_storage())
        return out

    def _run(self, func: Any, args: Any, kwargs: Any) -> Any:
        aten = torch.ops.aten
        if func is aten._local_scalar_dense.default:
            return 1.0 if args[0].dtype.is_floating_point else 1
        if func is aten.nonzero.default:  # every place has a weight
            return args[0].new_empty((args[0].numel(), 1), dtype=torch.int64)
        if func is aten.bincount.default:
            return args[0].new_empty(kwargs["minlength"] if "minlength" in kwargs else args[2], dtype=torch.int64)
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
        if func == torch.Tensor.is_cuda.__get__:
            return True
        if func is F.rms_norm:
            return _RMSNorm.apply(args[0], args[2] if len(args) > 2 else kwargs["weight"])
        if func is F.scaled_dot_product_attention:
            return _Attention.apply(*args[:3])
        return func(*args, **kwargs)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight, x.new_empty(x.shape[:-1], dtype=torch.float32))
        return torch.empty_like(x, memory_format=torch.contiguous_format)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        x, weight, _ = ctx.saved_tensors
        return torch.empty_like(x), torch.empty_like(weight)


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
