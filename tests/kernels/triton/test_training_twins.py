"""The training step's kernels against their definitions, values and gradients, in sizes that fit nothing.

Without a GPU Triton's interpreter runs them, in float32: it rounds to fewer bits wrongly.
"""

import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fathom.kernels import activation, assembly, linear_loss, norm, optimizer, permute, quant, router

pytestmark = pytest.mark.usefixtures("triton_kernels")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [torch.float32, *([torch.bfloat16] if DEVICE == "cuda" else [])]


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def twin_of(definition: Callable[..., Any]) -> Callable[..., Any]:
    file = definition.__module__.rpartition(".")[2]
    return getattr(importlib.import_module(f"fathom.kernels.triton.{file}"), definition.__name__)


def plain(definition: Callable[..., Any]) -> Callable[..., Any]:
    """The definition itself, on any device."""
    return definition.__wrapped__  # type: ignore[attr-defined]


def outcome(f: Callable[..., Any], inputs: list[Any], *rest: Any) -> list[Tensor]:
    """Outputs, and the gradients of float inputs under fixed random pulls at the float outputs."""
    inputs = [
        t.detach().clone().requires_grad_() if torch.is_tensor(t) and t.is_floating_point() else t for t in inputs
    ]
    out = f(*inputs, *rest)
    out = list(out) if isinstance(out, tuple) else [out]
    pulled = [t for t in out if t.requires_grad]
    loss = sum((t.float() * drawn(*t.shape, seed=9 + i)).sum() for i, t in enumerate(pulled))
    wanted = [t for t in inputs if torch.is_tensor(t) and t.requires_grad]
    return out + [g for g in torch.autograd.grad(loss, wanted, allow_unused=True) if g is not None]


def agree(definition: Callable[..., Any], inputs: list[Any], *rest: Any) -> None:
    found = outcome(twin_of(definition), inputs, *rest)
    wanted = outcome(plain(definition), inputs, *rest)
    assert len(found) == len(wanted)
    rough = any(torch.is_tensor(t) and t.dtype == torch.bfloat16 for t in inputs)
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
        if rough and ours.is_floating_point():  # the definition rounds between its operations, too
            assert (ours.float() - theirs.float()).norm() <= 8e-3 * theirs.float().norm()
        else:
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(3, 5, 96), (1, 1), (2, 1500)])
def test_norm_behind_an_addition(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    inputs = [drawn(*shape, dtype=dtype), drawn(*shape, seed=1, dtype=dtype), drawn(shape[-1], seed=2)]
    agree(norm.add_rms_norm, inputs, 1e-6)


@pytest.mark.parametrize("scoring", ["sigmoid", "softmax"])
@pytest.mark.parametrize(
    ("shape", "k", "groups"),
    [((37, 12), 3, (3, 2, 2)), ((5, 256), 8, (8, 4, 2)), ((9, 6), 2, (1, 1, 2)), ((1, 1), 1, (1, 1, 1))],
)
def test_routing(shape: tuple[int, int], k: int, groups: tuple[int, int, int], scoring: str) -> None:
    inputs = [drawn(*shape), drawn(shape[1], seed=1)]
    agree(router.route, inputs, k, scoring, *groups, k > 1, 2.5)


def test_a_routing_that_no_loss_reads_and_one_without_bias() -> None:
    logits = drawn(7, 10).requires_grad_()
    for f in (twin_of(router.route), plain(router.route)):
        routed = f(logits, None, 4, "softmax")
        (grad,) = torch.autograd.grad(routed.weights[:, 0].sum(), logits)
        logits.grad = grad if logits.grad is None else logits.grad - grad
    assert logits.grad is not None and logits.grad.abs().max() < 1e-6


@pytest.mark.parametrize("alignment", [1, 8])
@pytest.mark.parametrize(
    ("n_experts", "least", "pairs"), [(5, 0, (41, 3)), (64, 60, (200, 2)), (3, 3, (4, 2)), (4, 0, (0, 2))]
)
def test_permutation(n_experts: int, least: int, pairs: tuple[int, int], alignment: int) -> None:
    # also experts that are not here (the number n_experts), and experts without tokens
    experts = torch.randint(least, n_experts + 1, pairs, generator=torch.Generator().manual_seed(3)).to(DEVICE)
    ours = twin_of(permute.permutation)(experts, n_experts, alignment)
    theirs = plain(permute.permutation)(experts, n_experts, alignment)
    for found, wanted in zip(ours, theirs, strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=0)
    for dtype in DTYPES:
        agree(permute.permute, [drawn(pairs[0], 70, dtype=dtype)], theirs)
        agree(permute.unpermute, [drawn(len(theirs.order), 70, dtype=dtype)], theirs)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weighted", [True, False])
def test_swiglu(dtype: torch.dtype, weighted: bool) -> None:
    agree(activation.weighted_swiglu, [drawn(9, 2 * 83, dtype=dtype), drawn(9, seed=1) if weighted else None])


def test_swiglu_of_codes() -> None:
    gradient, row_weight = drawn(6, 160, seed=1), drawn(6, seed=2)
    codes, scales = quant.quantize_rows(drawn(6, 320))
    if DEVICE == "cpu":
        codes = codes.float()  # the interpreter reads no e4m3
    found = twin_of(activation.through_swiglu)(codes, gradient, row_weight, scales)
    wanted = plain(activation.through_swiglu)(codes, gradient, row_weight, scales)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_loss_of_logits() -> None:
    logits, targets = drawn(6, 300) * 5, torch.tensor([0, 299, 7, 7, 150, 3]).to(DEVICE)
    logits[2, 11:13] = 40.0  # a tie, whose first place counts
    weights = torch.tensor([1.0, 0.5, 0.0, 2.0, 1.0, 1.0]).to(DEVICE)
    found = twin_of(linear_loss.loss_rows)(logits, targets, weights, torch.float32)
    wanted = plain(linear_loss.loss_rows)(logits, targets, weights, torch.float32)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("heads", [1, 5, 20])
@pytest.mark.parametrize("dtype", DTYPES)
def test_assembly(heads: int, dtype: torch.dtype) -> None:
    nope, rope, v = 24, 8, 20
    angle = drawn(1, 3, rope // 2, seed=4)
    joined = drawn(2, 3, 30, seed=3, dtype=dtype)  # of which the key is a slice, as the projection leaves it

    def assembled(f: Callable[..., Any]) -> Callable[..., Any]:
        return lambda q, kv, joined: f(q, kv, joined[..., 30 - rope :], angle.cos(), angle.sin())

    inputs = [drawn(2, 3, heads, nope + rope, dtype=dtype), drawn(2, 3, heads, nope + v, seed=1, dtype=dtype), joined]
    found = outcome(assembled(twin_of(assembly.assemble_heads)), inputs)
    wanted = outcome(assembled(plain(assembly.assemble_heads)), inputs)
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("moments", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("gradients", [torch.float32, torch.bfloat16])
def test_adamw(moments: torch.dtype, gradients: torch.dtype) -> None:
    shapes = [(3, 5), (2049,), (1,), (4096,), (0,), (7, 11)]

    def updated(f: Callable[..., Any]) -> list[list[Tensor]]:
        p = [drawn(*s, seed=i) for i, s in enumerate(shapes)]
        m = [drawn(*s, seed=i + 10).to(moments) for i, s in enumerate(shapes)]
        v = [drawn(*s, seed=i + 20).square().to(moments) for i, s in enumerate(shapes)]
        g = [drawn(*s, seed=i + 30).to(gradients) for i, s in enumerate(shapes)]
        g[-1] = g[-1].T.contiguous().T  # another order in memory
        f(p, g, m, v, step=3, lr=1e-2, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.1)
        return [p, m, v]

    found, wanted = updated(twin_of(optimizer.adamw_many_)), updated(plain(optimizer.adamw_many_))
    # the order of float32 operations may move a moment over a tie of bfloat16
    near = {"rtol": 1e-5, "atol": 1e-6} if moments == torch.float32 else {"rtol": 8e-3, "atol": 1e-6}
    torch.testing.assert_close(found[0], wanted[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found[1:], wanted[1:], **near)


@pytest.mark.parametrize("which", ["definition", "twin"])
def test_moments_rounded_by_chance_are_right_on_average(which: str) -> None:
    f = (plain if which == "definition" else twin_of)(optimizer.adamw_many_)

    def moment(seed: int) -> Tensor:
        p, g = [torch.zeros(8192, device=DEVICE)], [torch.full((8192,), 1.0, device=DEVICE)]
        m, v = (torch.full((8192,), 1.0, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
        g[0] += 0.02  # the moment grows by 0.1 * 0.02, a quarter of the distance between numbers of bfloat16 there
        f(p, g, [m], [v], step=1, lr=0.0, beta1=0.9, beta2=0.9, eps=1.0, weight_decay=0.0, seed=seed)
        return m.float()

    first = moment(1)
    assert set(first.unique().tolist()) == {1.0, 1.0078125}
    assert abs(float(first.mean()) - 1.002) < 4 * 0.0034 / 8192**0.5  # four standard errors
    assert torch.equal(first, moment(1)) and not torch.equal(first, moment(2))


def test_mixed_precisions_are_refused() -> None:
    p = [torch.zeros(2, device=DEVICE), torch.zeros(2, device=DEVICE, dtype=torch.float64)]
    with pytest.raises(ValueError, match=r"parameters are .*must be one of"):
        twin_of(optimizer.adamw_many_)(p, p, p, p, step=1, lr=1, beta1=0, beta2=0, eps=1, weight_decay=0)
