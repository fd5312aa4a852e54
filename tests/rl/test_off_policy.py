"""Truncated importance sampling and V3.2's mask of stale answers."""

import math

import pytest
import torch

from fathom.config import ObjectiveConfig
from fathom.rl.grpo import advantages, denominator, policy_loss
from fathom.rl.off_policy import policy_weight, sampling_weight, stale_answers

MASK = torch.tensor([[True, True, False], [True, True, True]])
SAMPLED = torch.full((2, 3), -2.0)
GAPS = torch.tensor([[0.5, 0.6, 9.0], [-0.5, 0.2, 0.1]])  # of training over sampling
LOGP = SAMPLED + GAPS


@pytest.mark.parametrize(
    ("correction", "level", "expected"),
    [
        ("truncate", "token", [[1.5, 1.5, 0.0], [math.exp(-0.5), math.exp(0.2), math.exp(0.1)]]),
        ("mask", "token", [[0.0, 0.0, 0.0], [math.exp(-0.5), math.exp(0.2), math.exp(0.1)]]),
        ("truncate", "sequence", [[1.5, 1.5, 0.0], [math.exp(-0.2)] * 3]),  # e^1.1 is above the cap
        ("mask", "sequence", [[0.0, 0.0, 0.0], [math.exp(-0.2)] * 3]),
    ],
)
def test_weights_of_a_known_gap(correction: str, level: str, expected: list[list[float]]) -> None:
    objective = ObjectiveConfig(correction=correction, correction_level=level, correction_cap=1.5)  # pyright: ignore
    logp = LOGP.clone().requires_grad_()
    weight = sampling_weight(logp, SAMPLED, MASK, objective)
    assert not weight.requires_grad
    torch.testing.assert_close(weight.where(MASK, 0.0), torch.tensor(expected))


def test_dropped_answers_stay_in_the_baseline_and_in_every_denominator() -> None:
    objective = ObjectiveConfig(correction="mask", correction_level="sequence", correction_cap=1.5)
    gains = advantages(torch.tensor([1.0, 0.0]), torch.zeros(2, dtype=torch.long), objective)
    assert gains.tolist() == [0.5, -0.5]  # the dropped answer's reward still counts
    weight, counts = policy_weight(LOGP, LOGP, SAMPLED, gains.unsqueeze(1).expand(2, 3), MASK, objective)
    assert int(counts["corrected"]) == 2
    logp = LOGP.clone().requires_grad_()
    divisor = denominator(MASK, objective, 3)
    assert int(divisor) == 5
    policy_loss(logp, None, gains, MASK, objective, divisor, weight=weight)[0].backward()
    assert logp.grad is not None
    torch.testing.assert_close(logp.grad, torch.tensor([[0.0] * 3, [0.5 * math.exp(-0.2) / 5] * 3]))


def test_without_a_correction_there_is_no_weight_at_all() -> None:
    assert policy_weight(LOGP, LOGP, SAMPLED, LOGP, MASK, ObjectiveConfig()) == (None, {})


def test_stale_answers_are_bad_ones_that_have_become_rare() -> None:
    drifted = SAMPLED - torch.tensor([[0.3, 0.1, 50.0], [0.3, 0.1, 0.2]])  # 0.2 nats a trained token in both rows
    bad, good = torch.full((2, 3), -1.0), torch.full((2, 3), 1.0)
    assert torch.equal(stale_answers(drifted, SAMPLED, bad, MASK, 0.15), MASK)
    assert not stale_answers(drifted, SAMPLED, bad, MASK, 0.25).any()
    assert not stale_answers(drifted, SAMPLED, good, MASK, 0.15).any()
    assert not stale_answers(SAMPLED + 1, SAMPLED, bad, MASK, 0.15).any()  # likelier than before: pushed down


def test_a_stale_answer_loses_its_policy_term_and_keeps_its_kl() -> None:
    objective = ObjectiveConfig(stale_limit=0.15, kl_beta=0.5, kl_estimator="k2", old_policy="sampler")
    logp = torch.tensor([[-2.4, -2.4, 0.0], [-2.1, -2.1, -2.1]]).requires_grad_()
    gains = torch.tensor([-1.0, -1.0])
    weight, counts = policy_weight(logp, logp, SAMPLED, gains.unsqueeze(1).expand(2, 3), MASK, objective)
    assert int(counts["stale"]) == 2
    ref = torch.full((2, 3), -2.0)
    policy_loss(logp, SAMPLED, gains, MASK, objective, 1, ref, weight)[0].backward()
    assert logp.grad is not None
    ratio = math.exp(-0.1)
    wanted = [[0.5 * -0.4, 0.5 * -0.4, 0.0], [ratio + 0.5 * -0.1] * 3]
    torch.testing.assert_close(logp.grad, torch.tensor(wanted))
