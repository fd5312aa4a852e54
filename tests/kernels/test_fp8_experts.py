"""FP8 experts: the definition written out expert by expert, and the plain experts within the format's error."""

import pytest
import torch

from fathom.kernels.fp8 import Fp8Layer
from fathom.kernels.fp8_experts import fp8_grouped_swiglu
from fathom.kernels.grouped import grouped_swiglu
from fathom.kernels.quant import quantize_blocks, quantize_rows, swiglu
from fathom.kernels.scaled import scaled_product

WIDTH, INNER = 200, 136


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def inputs(chosen: torch.Tensor, experts: int) -> tuple[torch.Tensor, ...]:
    """x, experts, weights, gate_up and down."""
    tokens, k = chosen.shape
    return (
        drawn(tokens, WIDTH).requires_grad_(),
        chosen,
        drawn(tokens, k, seed=1).sigmoid().requires_grad_(),
        (drawn(experts, 2 * INNER, WIDTH, seed=2) / WIDTH**0.5).requires_grad_(),
        (drawn(experts, WIDTH, INNER, seed=3) / INNER**0.5).requires_grad_(),
    )


def written_out(
    x: torch.Tensor, experts: torch.Tensor, weights: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor
) -> torch.Tensor:
    """Token by token and expert by expert."""
    out = torch.zeros_like(x)
    for token in range(x.shape[0]):
        for place, expert in enumerate(experts[token].tolist()):
            codes = quantize_rows(x[token : token + 1], power_of_two=True)
            hidden = scaled_product(*codes, *quantize_blocks(gate_up[expert]))
            codes = quantize_rows(swiglu(hidden, weights[token, place : place + 1]))
            out[token] += scaled_product(*codes, *quantize_blocks(down[expert]))[0]
    return out


ROUTINGS = {
    "two of five": (torch.tensor([[0, 3], [3, 1], [0, 1], [3, 0]]), 5),
    "one token": (torch.tensor([[2]]), 3),
    "all on one expert": (torch.full((140, 1), 1), 3),
    "more experts than tokens": (torch.tensor([[7], [0]]), 9),
    "many": (torch.stack([torch.randperm(6, generator=torch.Generator().manual_seed(i))[:2] for i in range(200)]), 6),
}


@pytest.mark.parametrize("routing", ROUTINGS)
def test_values_are_the_definition(routing: str) -> None:
    args = inputs(*ROUTINGS[routing])
    with torch.no_grad():
        torch.testing.assert_close(
            fp8_grouped_swiglu(*args, Fp8Layer("experts")), written_out(*args), rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("routing", ROUTINGS)
@pytest.mark.parametrize("fp8_wgrad", [True, False])
def test_gradients_are_those_of_plain_experts_within_the_error_of_the_format(routing: str, fp8_wgrad: bool) -> None:
    args = inputs(*ROUTINGS[routing])
    leaves = [args[0], *args[2:]]
    direction = drawn(*args[0].shape, seed=5)
    found = fp8_grouped_swiglu(*args, Fp8Layer("experts", fp8_wgrad=fp8_wgrad))
    wanted = grouped_swiglu(*args)
    for ours, exact in zip(
        (found, *torch.autograd.grad(found, leaves, direction)),
        (wanted, *torch.autograd.grad(wanted, leaves, direction)),
        strict=True,
    ):
        gate = exact.shape == args[2].shape  # sums of a hundred products of both signs
        assert (ours - exact).norm() < (0.2 if gate else 0.09) * exact.norm()
        assert ours.dtype == torch.float32 and ours.shape == exact.shape


def test_an_expert_without_tokens_gets_no_gradient() -> None:
    args = inputs(torch.tensor([[0], [2]]), 3)
    fp8_grouped_swiglu(*args, Fp8Layer("experts")).sum().backward()
    for weight in args[3:]:
        assert weight.grad is not None
        assert not weight.grad[1].any() and weight.grad[0].any() and weight.grad[2].any()


def test_what_is_not_finite_is_reported_with_its_name() -> None:
    args = inputs(torch.tensor([[0], [2]]), 3)
    with torch.no_grad():
        args[0][1, 7] = float("nan")
    with pytest.raises(RuntimeError, match=r"the input of layers\.1\.feed_forward holds 1 numbers .* out of 400"):
        fp8_grouped_swiglu(*args, Fp8Layer("layers.1.feed_forward"))


def test_a_watched_layer_counts_all_its_tensors() -> None:
    layer = Fp8Layer("experts", watch={})
    fp8_grouped_swiglu(*inputs(torch.tensor([[0], [2]]), 3), layer).sum().backward()
    assert layer.watch is not None
    assert set(layer.watch) == {"weight", "input", "activation", "output's gradient", "activation's gradient"}
    assert layer.watch["input"].numbers == 2 * WIDTH and layer.watch["activation"].numbers == 2 * INNER
