"""RMSNorm against torch's own, values and gradients."""

import pytest
import torch
import torch.nn.functional as F

from fathom.kernels.norm import rms_norm


@pytest.mark.parametrize("shape", [(3, 8), (2, 5, 16), (2, 3, 4, 6)])
@pytest.mark.parametrize("scale", [1.0, 1e-4])
def test_values_and_gradients(shape: tuple[int, ...], scale: float) -> None:
    generator = torch.Generator().manual_seed(0)
    x = (scale * torch.randn(shape, generator=generator)).requires_grad_()
    weight = torch.randn(shape[-1], generator=generator).requires_grad_()
    direction = torch.randn(shape, generator=generator)
    found, wanted = rms_norm(x, weight, 1e-6), F.rms_norm(x, (shape[-1],), weight, 1e-6)
    torch.testing.assert_close(found, wanted)
    ours = torch.autograd.grad(found, (x, weight), direction)
    theirs = torch.autograd.grad(wanted, (x, weight), direction)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * b.abs().max().item())


def test_gradcheck() -> None:
    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a, b: rms_norm(a, b, 1e-3), (x, weight))


def test_by_hand() -> None:
    found = rms_norm(torch.tensor([[3.0, 4.0]]), torch.tensor([1.0, 2.0]), 0.0)
    torch.testing.assert_close(found, torch.tensor([[3.0, 8.0]]) / 12.5**0.5)


def test_without_gradients_the_value_is_the_same() -> None:
    x, weight = torch.randn(4, 8), torch.randn(8)
    with torch.no_grad():
        quick = rms_norm(x, weight, 1e-6)
    torch.testing.assert_close(quick, rms_norm(x, weight, 1e-6))
