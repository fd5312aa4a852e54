"""One AdamW update against torch's, and what bfloat16 moments keep."""

import pytest
import torch
from torch import Tensor

from fathom.kernels.optimizer import adamw_, newton_schulz

RATES = {"lr": 3e-3, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.1}


def gradients(steps: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(33, 17, generator=generator) * 10 ** (step % 3 - 2) for step in range(steps)]


def start() -> Tensor:
    return torch.randn(33, 17, generator=torch.Generator().manual_seed(0))


def test_float32_moments_follow_torch() -> None:
    ours, theirs = start(), start().requires_grad_()
    first, second = torch.zeros(33, 17), torch.zeros(33, 17)
    reference = torch.optim.AdamW([theirs], lr=3e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    for step, gradient in enumerate(gradients(12), 1):
        adamw_(ours, gradient, first, second, step=step, **RATES)
        theirs.grad = gradient
        reference.step()
        torch.testing.assert_close(ours, theirs.detach(), rtol=0, atol=1e-6)
    assert float((ours - start()).abs().max()) > 0.01


def test_one_step_by_hand() -> None:
    parameter, first, second = torch.tensor([2.0]), torch.zeros(1), torch.zeros(1)
    adamw_(
        parameter, torch.tensor([0.5]), first, second, step=1, lr=0.1, beta1=0.9, beta2=0.95, eps=0.0, weight_decay=0.5
    )
    assert first.item() == pytest.approx(0.05)
    assert second.item() == pytest.approx(0.0125)
    assert parameter.item() == pytest.approx(2.0 * 0.95 - 0.1)  # the first step moves by the whole rate


def test_bfloat16_moments_are_stored_in_bfloat16_and_stay_close() -> None:
    ours, exact = start(), start()
    low = [torch.zeros(33, 17, dtype=torch.bfloat16) for _ in range(2)]
    full = [torch.zeros(33, 17) for _ in range(2)]
    for step, gradient in enumerate(gradients(30), 1):
        adamw_(ours, gradient, *low, step=step, **RATES)
        adamw_(exact, gradient, *full, step=step, **RATES)
    assert all(moment.dtype == torch.bfloat16 for moment in low)
    moved = (exact - start()).norm()
    assert 0 < float((ours - exact).norm() / moved) < 0.02


def test_the_update_uses_the_moments_before_they_are_rounded() -> None:
    """A step's own gradient counts with all its digits, however few the store keeps."""
    gradient = torch.tensor([1.001])  # bfloat16 would make it 1.0
    parameter, first, second = torch.zeros(1), *(torch.zeros(1, dtype=torch.bfloat16) for _ in range(2))
    adamw_(parameter, gradient, first, second, step=1, lr=1.0, beta1=0.0, beta2=0.0, eps=1.0, weight_decay=0.0)
    assert parameter.item() == pytest.approx(-1.001 / 2.001, rel=1e-6)
    assert first.item() == 1.0


@pytest.mark.parametrize("shape", [(3, 4, 9), (9, 4), (5, 5)])
def test_newton_schulz_keeps_singular_vectors_and_brings_values_near_one(shape: tuple[int, ...]) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    u, _, v = torch.linalg.svd(matrices, full_matrices=False)
    values = u.mT @ newton_schulz(matrices) @ v.mT
    along = values.diagonal(dim1=-2, dim2=-1)
    torch.testing.assert_close(values, torch.diag_embed(along), rtol=0, atol=1e-4)
    assert along.min() > 0.3 and along.max() < 1.3
    assert not newton_schulz(torch.zeros(2, 3)).any()
