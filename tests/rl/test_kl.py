"""KL estimators: the same quantity by value, not by gradient."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from fathom.config import ObjectiveConfig
from fathom.rl.divergence import kl


def fifty_way() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(50, generator=generator).requires_grad_()
    return logits, torch.randn(50, generator=generator).log_softmax(0)


def true_gradient() -> tuple[Tensor, Tensor]:
    logits, ref = fifty_way()
    logp = logits.log_softmax(0)
    divergence = (logp.exp() * (logp - ref)).sum()
    return divergence.detach(), torch.autograd.grad(divergence, logits)[0]


def expectation(estimator: str) -> tuple[Tensor, Tensor]:
    """Value and gradient of an estimator averaged over the policy's own draws, computed exactly."""
    logits, ref = fifty_way()
    logp = logits.log_softmax(0)
    mean = (logp.detach().exp() * kl(logp, ref, estimator)).sum()
    return mean.detach(), torch.autograd.grad(mean, logits)[0]


def test_k1_in_a_loss_has_no_gradient_in_expectation_and_is_refused() -> None:
    value, gradient = expectation("k1")
    torch.testing.assert_close(value, true_gradient()[0])
    assert float(gradient.norm()) < 1e-6
    with pytest.raises(ValueError, match="k2, k3_weighted or k3"):
        ObjectiveConfig(kl_beta=0.1, kl_estimator="k1")


@pytest.mark.parametrize("estimator", ["k2", "k3_weighted"])
def test_k2_and_weighted_k3_have_the_true_gradient(estimator: str) -> None:
    torch.testing.assert_close(expectation(estimator)[1], true_gradient()[1], rtol=1e-4, atol=1e-7)


def test_k3_has_the_true_value_but_another_gradient() -> None:
    value, gradient = expectation("k3")
    true_value, true = true_gradient()
    torch.testing.assert_close(value, true_value)
    torch.testing.assert_close(expectation("k3_weighted")[0], true_value)
    assert 0.75 < float(cosine_similarity(gradient, true, dim=0)) < 0.95


def test_hand_values() -> None:
    logp, ref = torch.tensor([-1.0]), torch.tensor([-1.5])
    assert float(kl(logp, ref, "k1")) == 0.5
    assert float(kl(logp, ref, "k2")) == pytest.approx(0.125)
    assert float(kl(logp, ref, "k3")) == pytest.approx(0.1065307)  # e^-0.5 + 0.5 - 1
    assert float(kl(logp, ref, "k3_weighted")) == pytest.approx(0.1065307)
    old = torch.tensor([-1.0 - 0.6931472])
    assert float(kl(logp, ref, "k3_weighted", old)) == pytest.approx(2 * 0.1065307)
    for estimator in ("k1", "k2", "k3", "k3_weighted"):
        assert float(kl(logp, logp, estimator)) == 0.0


@pytest.mark.parametrize("estimator", ["k2", "k3_weighted", "k3"])
def test_exponents_are_clamped(estimator: str) -> None:
    logp = torch.tensor([-500.0, -1e-6]).requires_grad_()
    value = kl(logp, torch.tensor([-1e-6, -500.0]), estimator, torch.tensor([-1e-6, -500.0]))
    value.sum().backward()
    assert value.isfinite().all()
    assert logp.grad is not None
    assert logp.grad.isfinite().all()
