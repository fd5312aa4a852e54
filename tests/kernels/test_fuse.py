"""Compiled functions against the definitions that every device without them runs: values and gradients."""

import subprocess
import sys
from collections.abc import Callable, Generator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fathom.kernels import fuse, grouped
from fathom.kernels.cross_entropy import token_logprobs
from fathom.kernels.grouped import grouped_swiglu
from fathom.kernels.narrow_head import NarrowLogprobs
from fathom.kernels.norm import rms_norm
from fathom.kernels.router import row_balance_loss, sequence_balance_loss, thirds

GENERATOR = torch.Generator().manual_seed(0)


def draw(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=GENERATOR).to(dtype).requires_grad_()


@pytest.fixture
def fusing() -> Generator[None]:
    """The fast ways, as plain code: what `torch.compile` is given."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fuse, "_compiled", lambda definition: definition)
        fuse.fuse("on")
        yield
        fuse.fuse("auto")


@pytest.fixture
def without_shapes(request: pytest.FixtureRequest) -> None:
    if request.config.getoption("--shapes"):
        pytest.skip("the compiler does not see through checked signatures; see the last test of this file")


def agree(fast: Callable[..., object], plain: Callable[..., object], *inputs: object, tolerance: float = 2e-5) -> None:
    """Values of both and gradients with respect to every input that has one, pulled by the same directions."""

    def run(function: Callable[..., object]) -> list[Tensor]:
        out = function(*inputs)
        outs = [o for o in (out if isinstance(out, tuple) else (out,)) if isinstance(o, Tensor)]
        pulls = [(o, torch.cos(torch.arange(o.numel()).float()).view(o.shape).to(o)) for o in outs if o.requires_grad]
        leaves = [x for x in inputs if isinstance(x, Tensor) and x.requires_grad]
        heads, directions = zip(*pulls, strict=True)
        grads = torch.autograd.grad(heads, leaves, directions, allow_unused=True)
        return [*(o.detach() for o in outs), *(torch.zeros(()) if g is None else g for g in grads)]

    for a, b in zip(run(fast), run(plain), strict=True):
        torch.testing.assert_close(
            a.double(), b.double(), rtol=tolerance, atol=tolerance * max(1, float(b.abs().max()))
        )


def plain_norm(x: Tensor, weight: Tensor) -> Tensor:
    return F.rms_norm(x, (x.shape[-1],), weight, 1e-5)


def test_norms(fusing: None) -> None:
    agree(lambda x, w: rms_norm(x, w, 1e-5), plain_norm, draw(3, 5, 16), draw(16))


def test_a_norm_of_part_of_a_row(fusing: None) -> None:
    x, weight = draw(2, 4, 10), draw(6)
    agree(lambda x, w: rms_norm(x[..., :6], w, 1e-5), lambda x, w: plain_norm(x[..., :6], w), x, weight)


@pytest.mark.parametrize(("tokens", "experts", "k"), [(7, 4, 2), (1, 3, 3), (9, 300, 1)])
def test_experts(fusing: None, tokens: int, experts: int, k: int) -> None:
    chosen = torch.stack([torch.randperm(experts, generator=GENERATOR)[:k] for _ in range(tokens)])
    x, weights, gate_up, down = draw(tokens, 8), draw(tokens, k), draw(experts, 16, 8), draw(experts, 8, 8)

    def plain(x: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
        order, load = grouped.sort_by_expert(chosen, experts)
        return grouped._GroupedSwiGLU.apply(x, weights, gate_up, down, order, order // k, load.tolist())  # pyright: ignore

    agree(lambda x, w, g, d: grouped_swiglu(x, chosen, w, g, d), plain, x, weights, gate_up, down)


def test_the_thirds_of_a_weight_are_all_of_it() -> None:
    weight = torch.randn(5, 7, generator=GENERATOR)
    assert torch.equal(thirds(weight).double().view(3, 5, 7).sum(0), weight.double())


def test_balance_compiled(without_shapes: None) -> None:
    fuse.fuse("on")
    try:
        agree(
            lambda s: row_balance_loss(s, 3),
            lambda s: sequence_balance_loss(s, 3),
            draw(2, 9, 8).sigmoid().detach().requires_grad_(),
        )
    finally:
        fuse.fuse("auto")


def by_definition(hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    p = (hidden.float() @ weight.bfloat16().float().T / temperature).log_softmax(-1)
    return p.gather(1, targets.unsqueeze(1)).squeeze(1), -(p.exp() * p).sum(-1)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("entropy", [False, True])
def test_the_head_in_bfloat16(fusing: None, monkeypatch: pytest.MonkeyPatch, temperature: float, entropy: bool) -> None:
    """Float32 sums: values to float32's precision, gradients to that of the bfloat16 probabilities."""
    monkeypatch.setattr("fathom.kernels.narrow_head.CHUNK_ELEMENTS", 40 * 3)  # chunks of three rows, the last of one
    hidden, weight = draw(7, 12, dtype=torch.bfloat16), draw(40, 12)
    targets = torch.randint(0, 40, (7,), generator=GENERATOR)
    found = token_logprobs(hidden, weight, targets, temperature, entropy)
    assert found.logprob.grad_fn is not None and NarrowLogprobs.__name__ in found.logprob.grad_fn.name()
    wanted, wanted_entropy = by_definition(hidden, weight, targets, temperature)
    torch.testing.assert_close(found.logprob, wanted, rtol=1e-5, atol=1e-5)
    assert found.best.tolist() == (hidden.float() @ weight.bfloat16().float().T).argmax(-1).tolist()
    pull = torch.rand(7, generator=GENERATOR)
    total, wanted_total = found.logprob @ pull, wanted @ pull
    if entropy:
        torch.testing.assert_close(found.entropy, wanted_entropy, rtol=1e-4, atol=1e-4)
        total, wanted_total = total + found.entropy @ pull, wanted_total + wanted_entropy @ pull
    ours = torch.autograd.grad(total, (hidden, weight))
    theirs = torch.autograd.grad(wanted_total, (hidden, weight))
    for a, b in zip(ours, theirs, strict=True):
        assert float((a.float() - b.float()).norm() / b.float().norm()) < 6e-3


def test_a_norm_compiled(without_shapes: None) -> None:
    """One of them through the compiler itself, for several numbers of rows and widths."""
    fuse.fuse("on")
    try:
        for rows, width in ((4, 8), (5, 8), (6, 8), (6, 10)):
            x, weight = draw(rows, width), draw(width)
            agree(lambda x, w: rms_norm(x, w, 1e-5), plain_norm, x, weight)
    finally:
        fuse.fuse("auto")


def test_off_is_plain() -> None:
    fuse.fuse("off")
    try:
        assert not fuse.is_fused(torch.ones(1))
    finally:
        fuse.fuse("auto")


@pytest.mark.slow
def test_the_compiler_itself() -> None:
    """Those that were left out, in a process whose signatures are not checked."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--no-shapes",
        "-k",
        "compiled",
        __file__,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "2 passed" in done.stdout, done.stdout
