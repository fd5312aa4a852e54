"""Grouped products against a plain loop over tokens."""

import pytest
import torch
import torch.nn.functional as F

from fathom.kernels import grouped
from fathom.kernels.grouped import grouped_swiglu


def inputs(tokens: int, experts: int, k: int, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """x, experts, weights, gate_up and down in float64; width 5, expert width 3."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()

    chosen = torch.stack([torch.randperm(experts, generator=generator)[:k] for _ in range(tokens)])
    return draw(tokens, 5), chosen, draw(tokens, k), draw(experts, 6, 5), draw(experts, 5, 3)


def plain(
    x: torch.Tensor, experts: torch.Tensor, weights: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor
) -> torch.Tensor:
    rows = []
    for token, chosen, weight in zip(x, experts.tolist(), weights, strict=True):
        out = torch.zeros_like(token)
        for expert, share in zip(chosen, weight, strict=True):
            gate, up = gate_up[expert] @ token
            out = out + share * (down[expert] @ (F.silu(gate) * up))
        rows.append(out)
    return torch.stack(rows)


def split_gate(gate_up: torch.Tensor) -> torch.Tensor:
    """(E, 2M, D) as (E, 2, M, D), so that `plain` can take gate and up apart."""
    return gate_up.unflatten(1, (2, -1))


@pytest.mark.parametrize(("tokens", "experts", "k"), [(7, 4, 2), (1, 3, 3), (9, 8, 1)])
def test_values_and_gradients_are_those_of_a_loop(tokens: int, experts: int, k: int) -> None:
    args = inputs(tokens, experts, k)
    found = grouped_swiglu(*args)
    wanted = plain(*args[:3], split_gate(args[3]), args[4])
    torch.testing.assert_close(found, wanted)
    leaves = [args[0], *args[2:]]
    direction = torch.randn(found.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for ours, theirs in zip(
        torch.autograd.grad(found, leaves, direction), torch.autograd.grad(wanted, leaves, direction), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_gradcheck() -> None:
    x, experts, weights, gate_up, down = inputs(5, 3, 2)
    assert torch.autograd.gradcheck(lambda *a: grouped_swiglu(a[0], experts, *a[1:]), (x, weights, gate_up, down))


def test_an_expert_without_tokens_gets_no_gradient() -> None:
    x, _, weights, gate_up, down = inputs(4, 3, 2)
    experts = torch.tensor([[0, 2]] * 4)
    grouped_swiglu(x, experts, weights, gate_up, down).sum().backward()
    assert (gate_up.grad[1] == 0).all()
    assert (down.grad[1] == 0).all()
    assert (gate_up.grad[0] != 0).any()


def test_no_token_is_dropped_when_all_choose_one_expert() -> None:
    x, _, weights, gate_up, down = inputs(50, 4, 1)
    experts = torch.full((50, 1), 3)
    found = grouped_swiglu(x, experts, weights, gate_up, down)
    gate, up = (x @ gate_up[3].T).chunk(2, dim=-1)
    torch.testing.assert_close(found, weights * ((F.silu(gate) * up) @ down[3].T))


@pytest.mark.parametrize("dense_work", [0, 1 << 20])
def test_values_without_gradient_are_those_of_a_loop(dense_work: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grouped, "DENSE_WORK", dense_work)
    x, experts, weights, gate_up, down = inputs(7, 4, 2)
    with torch.no_grad():
        found = grouped_swiglu(x, experts, weights, gate_up, down)
        torch.testing.assert_close(found, plain(x, experts, weights, split_gate(gate_up), down))
