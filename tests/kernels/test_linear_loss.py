"""The head and its loss against the same law written out, with what autograd makes of it."""

import pytest
import torch
import torch.nn.functional as F

from fathom.kernels import linear_loss


@pytest.mark.parametrize("most", [1 << 19, 40])  # logits at a time: all rows in one piece, and rows in pieces
def test_loss_and_gradients_are_those_of_cross_entropy(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    monkeypatch.setattr(linear_loss, "CPU_ELEMENTS", most)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(9, 6, generator=generator).requires_grad_()
    weight = torch.randn(17, 6, generator=generator).requires_grad_()
    targets = torch.randint(17, (9,), generator=generator)
    weights = torch.rand(9, generator=generator)
    weights[4] = 0
    loss, best = linear_loss.linear_loss(hidden, weight, targets, weights)
    logits = hidden @ weight.T
    wanted = (F.cross_entropy(logits, targets, reduction="none") * weights).sum()
    torch.testing.assert_close(loss, wanted)
    assert torch.equal(best, logits.argmax(-1))
    found = torch.autograd.grad(3 * loss, (hidden, weight))
    torch.testing.assert_close(found, torch.autograd.grad(3 * wanted, (hidden, weight)))
    assert not found[0][4].any()


def test_no_rows_lose_nothing() -> None:
    weight = torch.randn(5, 3).requires_grad_()
    empty = torch.zeros(0, dtype=torch.long)
    loss, _ = linear_loss.linear_loss(torch.zeros(0, 3), weight, empty, torch.zeros(0))
    (grad,) = torch.autograd.grad(loss, weight)
    assert loss == 0 and not grad.any()
