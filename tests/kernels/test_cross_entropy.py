"""Log-probabilities from hidden states against a full table of logits."""

import pytest
import torch
import torch.nn.functional as F

from fathom.kernels.cross_entropy import CHUNK_ELEMENTS, token_logprobs


def inputs(tokens: int, vocabulary: int, width: int = 6) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(tokens, width, generator=generator).requires_grad_()
    weight = torch.randn(vocabulary, width, generator=generator).requires_grad_()
    return hidden, weight, torch.randint(vocabulary, (tokens,), generator=generator)


@pytest.mark.parametrize("temperature", [1.0, 0.7, 2.0])
def test_value_gradient_and_entropy(temperature: float) -> None:
    hidden, weight, targets = inputs(11, 40)
    found = token_logprobs(hidden, weight, targets, temperature, entropy=True)
    logits = hidden @ weight.T / temperature
    wanted = -F.cross_entropy(logits, targets, reduction="none")
    torch.testing.assert_close(found.logprob, wanted, atol=1e-5, rtol=1e-5)
    distribution = torch.distributions.Categorical(logits=logits)
    torch.testing.assert_close(found.entropy, distribution.entropy(), atol=1e-5, rtol=1e-5)
    direction = torch.linspace(-1, 2, 11)
    ours = torch.autograd.grad(found.logprob, (hidden, weight), direction)
    theirs = torch.autograd.grad(wanted, (hidden, weight), direction)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("tokens", "vocabulary"), [(11, 40), (700, 1000)])  # the second in two chunks
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("both", [False, True])
def test_the_gradient_of_the_entropy(tokens: int, vocabulary: int, temperature: float, both: bool) -> None:
    """Against a table of logits: of the entropy alone, and of a loss that holds log-probabilities too."""
    hidden, weight, targets = inputs(tokens, vocabulary)
    found = token_logprobs(hidden, weight, targets, temperature, entropy=True)
    law = torch.distributions.Categorical(logits=hidden @ weight.T / temperature)
    direction = torch.linspace(-1, 2, tokens)
    ours = (found.entropy * direction).sum() + both * found.logprob.sum()
    theirs = (law.entropy() * direction).sum() + both * law.log_prob(targets).sum()
    wanted = torch.autograd.grad(theirs, (hidden, weight))
    for a, b in zip(torch.autograd.grad(ours, (hidden, weight)), wanted, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
        assert float(b.abs().max()) > 0.01


@pytest.mark.parametrize("tokens", [1, 3, 4, 5, 8, 9])
def test_chunk_edges(tokens: int) -> None:
    hidden, weight, targets = inputs(tokens, CHUNK_ELEMENTS // 4)  # four rows a chunk
    found = token_logprobs(hidden, weight, targets, entropy=True)
    logits = hidden @ weight.T
    wanted = -F.cross_entropy(logits, targets, reduction="none")
    torch.testing.assert_close(found.logprob, wanted, atol=1e-4, rtol=1e-5)
    spread = torch.distributions.Categorical(logits=logits.detach()).entropy()
    torch.testing.assert_close(found.entropy, spread, atol=1e-4, rtol=1e-5)
    direction = torch.arange(1.0, tokens + 1)
    ours = torch.autograd.grad(found.logprob, (hidden, weight), direction)
    theirs = torch.autograd.grad(wanted, (hidden, weight), direction)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_an_unlikely_token_keeps_its_logprob() -> None:
    """Its probability, exp(-400), is zero in float32."""
    hidden = torch.tensor([[1.0]])
    weight = torch.tensor([[0.0], [400.0]])
    found = token_logprobs(hidden, weight, torch.tensor([0]), entropy=True)
    assert found.logprob.item() == -400.0
    assert found.entropy.item() == 0.0


def test_logprobs_of_all_tokens_sum_to_one() -> None:
    hidden, weight, _ = inputs(1, 30)
    every = token_logprobs(hidden.detach().expand(30, -1), weight.detach(), torch.arange(30))
    assert every.logprob.exp().sum().item() == pytest.approx(1.0, abs=1e-6)
    assert every.entropy.tolist() == [0.0] * 30  # not asked for


def test_no_tokens() -> None:
    hidden, weight, targets = inputs(0, 7)
    found = token_logprobs(hidden, weight, targets, entropy=True)
    assert found.logprob.shape == found.entropy.shape == (0,)
    found.logprob.sum().backward()
    assert (weight.grad == 0).all()
