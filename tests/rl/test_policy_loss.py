"""The clipped loss: which ratio, what is cut, and what divides what."""

import pytest
import torch
from torch import Tensor

from fathom.config import ObjectiveConfig
from fathom.kernels.cross_entropy import token_logprobs
from fathom.rl.grpo import denominator, metric_means, policy_loss
from fathom.rl.off_policy import sampling_weight

TOKEN = ObjectiveConfig(aggregation="token")


def one_token(ratio: float, advantage: float, objective: ObjectiveConfig) -> tuple[float, float, dict[str, Tensor]]:
    """Loss, its gradient in the log-probability, and the metrics of a single token at a given ratio."""
    logp = torch.tensor([[ratio]]).log().requires_grad_()
    mask = torch.ones(1, 1, dtype=torch.bool)
    loss, metrics = policy_loss(logp, torch.zeros(1, 1), torch.tensor([advantage]), mask, objective, 1)
    loss.backward()
    assert logp.grad is not None
    return loss.item(), float(logp.grad), metrics


def test_old_logprobs_of_a_single_update_give_a_ratio_of_exactly_one() -> None:
    generator = torch.Generator().manual_seed(0)
    logp = (-20 * torch.rand(4, 9, generator=generator)).requires_grad_()
    mask = torch.rand(4, 9, generator=generator) < 0.7
    ones = torch.ones(4)
    loss, metrics = policy_loss(logp, None, ones, mask, TOKEN, int(mask.sum()))
    assert loss.item() == -1.0  # minus the mean of ratios that are 1 bit for bit
    assert float(metrics["clip_high"] + metrics["clip_low"]) == 0
    (gradient,) = torch.autograd.grad(loss, logp)
    assert torch.equal(gradient, mask / -mask.sum())


def test_old_logprobs_stay_frozen_for_the_second_mini_batch() -> None:
    weight = torch.zeros(5, requires_grad=True)
    tokens, mask, advantages = torch.tensor([[1, 2], [3, 4]]), torch.ones(1, 2, dtype=torch.bool), torch.ones(1)
    old = weight.log_softmax(0)[tokens].detach()
    optimizer = torch.optim.SGD([weight], lr=0.1)
    for row in (0, 1):
        logp = weight.log_softmax(0)[tokens[row : row + 1]]
        loss, _ = policy_loss(logp, old[row : row + 1], advantages, mask, TOKEN, 2)
        if row == 1:  # the first update raised tokens 1 and 2, so tokens 3 and 4 fell below their old values
            assert loss.item() == pytest.approx(-(logp - old[1:]).exp().mean().item())
            assert -0.99 < loss.item() < -0.9
        loss.backward()
        optimizer.step()


def test_a_known_gap_to_the_sampler_is_weighed_by_its_capped_exponential() -> None:
    gaps = torch.tensor([[0.0, 0.5, -0.5, 3.0, 100.0]])
    logp = torch.full((1, 5), -2.0)
    everything, truncate = torch.ones(1, 5, dtype=torch.bool), ObjectiveConfig(correction="truncate")
    weights = sampling_weight(logp, logp - gaps, everything, truncate)
    torch.testing.assert_close(weights, torch.tensor([[1.0, 1.6487213, 0.6065307, 2.0, 2.0]]))


def test_the_sampler_weight_is_detached_and_multiplies_the_policy_term_alone() -> None:
    logp = torch.full((1, 2), -1.0, requires_grad=True)
    mask, ref = torch.ones(1, 2, dtype=torch.bool), torch.full((1, 2), -1.5)
    weight = sampling_weight(logp, torch.tensor([[-1.2, -0.9]]), mask, ObjectiveConfig(correction="truncate"))
    assert not weight.requires_grad
    objective = ObjectiveConfig(kl_beta=0.5, kl_estimator="k2")
    (gradient,) = torch.autograd.grad(policy_loss(logp, None, torch.ones(1), mask, objective, 1, ref, weight)[0], logp)
    torch.testing.assert_close(gradient, -weight + 0.5 * 0.5)  # the KL's own gradient is beta * (logp - ref)
    live = torch.ones(1, 2, requires_grad=True)  # even a weight that was left attached gets no gradient
    policy_loss(logp, None, torch.ones(1), mask, objective, 1, ref, live)[0].backward()
    assert live.grad is None
    no_policy, _ = policy_loss(logp, None, torch.zeros(1), mask, objective, 1, ref, weight)
    assert no_policy.item() == pytest.approx(2 * 0.5 * 0.125)


@pytest.mark.parametrize("temperature", [0.6, 1.0, 1.3])
def test_temperature_divides_the_logits_of_every_logprob(temperature: float) -> None:
    generator = torch.Generator().manual_seed(1)
    hidden, weight = torch.randn(6, 8, generator=generator), torch.randn(20, 8, generator=generator)
    sampling_law = (hidden @ weight.T / temperature).softmax(-1)
    tokens = torch.multinomial(sampling_law, 1, generator=generator).squeeze(1)
    sampled = sampling_law.log().gather(1, tokens.unsqueeze(1)).T
    mask, ones = torch.ones(1, 6, dtype=torch.bool), torch.ones(1)
    logp = token_logprobs(hidden, weight, tokens, temperature).logprob.unsqueeze(0)
    assert policy_loss(logp, None, ones, mask, TOKEN, 6)[0].item() == -1.0
    torch.testing.assert_close((logp - sampled).exp(), torch.ones(1, 6), rtol=1e-5, atol=0)
    if temperature != 1.0:
        plain = token_logprobs(hidden, weight, tokens).logprob.unsqueeze(0)
        assert float(((plain - sampled).exp() - 1).abs().max()) > 0.1


def test_policy_logprobs_in_half_precision_are_raised_to_float32() -> None:
    logp = torch.tensor([[-19.95]]).bfloat16()
    assert float(logp) == -20.0  # its neighbours lie 0.125 away: ratios of such values are noise
    old = logp - 0.125
    loss, _ = policy_loss(logp, old, torch.tensor([-1.0]), torch.ones(1, 1, dtype=torch.bool), TOKEN, 1)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(1.1331485, rel=1e-6)  # e^0.125; bfloat16 would say 1.1328


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient", "clipped"),
    [
        (1.5, 1.0, -1.28, 0.0, "clip_high"),  # already likelier than wanted: cut
        (0.5, 1.0, -0.5, -0.5, None),  # became rarer though good: pushed up
        (1.5, -1.0, 1.5, 1.5, None),  # became likelier though bad: pushed down
        (0.5, -1.0, 0.8, 0.0, "clip_low"),  # already rarer than wanted: cut
        (1.25, 1.0, -1.25, -1.25, None),  # within the wider upper range
        (0.79, -1.0, 0.8, 0.0, "clip_low"),
        (5.0, -1.0, 5.0, 5.0, None),
    ],
)
def test_clipping_in_four_quadrants(
    ratio: float, advantage: float, loss: float, gradient: float, clipped: str | None
) -> None:
    value, slope, metrics = one_token(ratio, advantage, ObjectiveConfig(clip_low=0.2, clip_high=0.28))
    assert value == pytest.approx(loss, rel=1e-5)
    assert slope == pytest.approx(gradient, rel=1e-5)
    # an out-of-range ratio whose gradient still flows is no clip
    counts = {name: int(count) for name, count in metrics.items()}
    expected: dict[str, int] = {"tokens": 1, "clip_high": 0, "clip_low": 0}
    assert counts == expected | ({clipped: 1} if clipped else {})


def test_dual_clip_caps_the_ratio_of_bad_tokens_only() -> None:
    dual = ObjectiveConfig(clip_dual=3.0)
    value, slope, metrics = one_token(5.0, -1.0, dual)
    assert (value, slope, int(metrics["clip_dual"])) == (3.0, 0.0, 1)
    value, slope, metrics = one_token(2.0, -1.0, dual)
    assert (value, slope) == pytest.approx((2.0, 2.0))
    assert int(metrics["clip_dual"]) == 0
    assert one_token(5.0, 1.0, dual)[0] == pytest.approx(-1.28)
    assert one_token(5.0, -1.0, ObjectiveConfig())[0] == pytest.approx(5.0)


def test_clip_metrics_become_shares_by_sign() -> None:
    logp = torch.tensor([[1.5, 0.5, 1.0, 9.0], [1.5, 0.5, 0.6, 1.0]]).log()
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]], dtype=torch.bool)
    _, sums = policy_loss(logp, torch.zeros(2, 4), torch.tensor([1.0, -1.0]), mask, ObjectiveConfig(), 7)
    means = metric_means(sums)
    assert means == pytest.approx({"clip_high": 1 / 7, "clip_low": 2 / 7, "clip_share": 3 / 7})


def test_kl_needs_a_reference_and_beta_zero_needs_none() -> None:
    logp, mask = torch.zeros(1, 1, requires_grad=True), torch.ones(1, 1, dtype=torch.bool)
    with pytest.raises(ValueError, match="ref_logp"):
        policy_loss(logp, None, torch.ones(1), mask, ObjectiveConfig(kl_beta=0.1), 1)
    assert "kl" not in policy_loss(logp, None, torch.ones(1), mask, TOKEN, 1)[1]
    # a reference that is only watched adds a metric and no gradient
    loss, metrics = policy_loss(logp, None, torch.zeros(1), mask, TOKEN, 1, ref_logp=torch.full((1, 1), -0.5))
    assert float(metrics["kl"]) == pytest.approx(0.1065307)
    assert float(torch.autograd.grad(loss, logp)[0]) == 0.0


def test_nothing_under_the_mask_reaches_loss_or_gradient() -> None:
    logp = torch.tensor([[-1.0, -torch.inf, float("nan")]], requires_grad=True)
    mask = torch.tensor([[True, False, False]])
    objective = ObjectiveConfig(kl_beta=0.1)
    garbage = torch.tensor([[-1.0, float("nan"), -torch.inf]])
    loss, metrics = policy_loss(logp, garbage, torch.ones(1), mask, objective, 1, garbage, garbage.abs())
    assert loss.item() == -1.0
    assert float(metrics["tokens"]) == 1
    assert torch.autograd.grad(loss, logp)[0].tolist() == [[-1.0, 0.0, 0.0]]


def test_a_batch_without_trained_tokens_has_no_loss() -> None:
    logp, mask = torch.zeros(2, 3, requires_grad=True), torch.zeros(2, 3, dtype=torch.bool)
    for aggregation in ("token", "sequence", "constant"):
        objective = ObjectiveConfig(aggregation=aggregation)
        divisor = denominator(mask, objective, 3)
        loss, sums = policy_loss(logp, None, torch.ones(2), mask, objective, divisor)
        assert loss.item() == 0.0
        assert metric_means(sums)["clip_share"] == 0.0


LENGTHS = torch.tensor([2, 9, 1, 5, 7, 3, 9, 4])


def policy_gradient(objective: ObjectiveConfig, rows_per_pass: int, width: int = 9) -> Tensor:
    """Gradient of a table of bigram logits, accumulated over micro-batches of `rows_per_pass`."""
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(6, 6, generator=generator).requires_grad_()
    tokens = torch.randint(6, (8, 10), generator=generator)
    advantages = torch.randn(8, generator=generator)
    drift = 0.4 * torch.randn(8, 9, generator=generator)
    tokens, drift = (torch.nn.functional.pad(x, (0, width - 9)) for x in (tokens, drift))
    mask = torch.arange(width) < LENGTHS.unsqueeze(1)
    divisor = denominator(mask, objective, max_tokens=9)
    for rows in torch.arange(8).split(rows_per_pass):
        logp = table.log_softmax(-1)[tokens[rows, :-1], tokens[rows, 1:]]
        old = logp.detach() - drift[rows]
        loss, _ = policy_loss(logp, old, advantages[rows], mask[rows], objective, divisor, ref_logp=old - 0.3)
        loss.backward()
    assert table.grad is not None
    return table.grad


@pytest.mark.parametrize("aggregation", ["token", "sequence", "constant"])
@pytest.mark.parametrize("rows_per_pass", [1, 2, 3])
def test_aggregation_gives_one_gradient_for_every_micro_batch_size(aggregation: str, rows_per_pass: int) -> None:
    objective = ObjectiveConfig(aggregation=aggregation, kl_beta=0.1)  # pyright: ignore[reportArgumentType]
    whole = policy_gradient(objective, 8)
    torch.testing.assert_close(policy_gradient(objective, rows_per_pass), whole, rtol=0, atol=1e-6)
    assert float(whole.abs().max()) > 0.01


@pytest.mark.parametrize("aggregation", ["token", "sequence", "constant"])
def test_aggregation_does_not_see_padding(aggregation: str) -> None:
    objective = ObjectiveConfig(aggregation=aggregation)  # pyright: ignore[reportArgumentType]
    torch.testing.assert_close(
        policy_gradient(objective, 8, width=30), policy_gradient(objective, 8), rtol=0, atol=1e-6
    )


@pytest.mark.parametrize(
    ("aggregation", "short", "long"),
    [("token", 1 / 1010, 1 / 1010), ("sequence", 1 / 20, 1 / 2000), ("constant", 1 / 2000, 1 / 2000)],
)
def test_aggregation_weights_of_a_short_answer_beside_a_long_one(aggregation: str, short: float, long: float) -> None:
    """A token of 10 beside an answer of 1,000: 0.00099, or 0.05 where each answer (or micro-batch) is averaged."""
    objective = ObjectiveConfig(aggregation=aggregation)  # pyright: ignore[reportArgumentType]
    mask = torch.arange(1000) < torch.tensor([[10], [1000]])
    logp = torch.zeros(2, 1000, requires_grad=True)
    divisor = denominator(mask, objective, max_tokens=1000)
    loss, _ = policy_loss(logp, None, torch.ones(2), mask, objective, divisor)
    loss.backward()
    assert logp.grad is not None
    assert float(-logp.grad[0, 0]) == pytest.approx(short)
    assert float(-logp.grad[1, 0]) == pytest.approx(long)
