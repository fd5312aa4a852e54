"""GSPO and CISPO in closed form on three tokens, beside PPO's form."""

import math

import pytest
import torch
from torch import Tensor

from fathom.config import ObjectiveConfig
from fathom.config.objectives import OBJECTIVES, named_objective
from fathom.rl.grpo import denominator, policy_loss

OLD = torch.tensor([[-1.0, -2.0, -0.5, -9.0]])
MASK = torch.tensor([[True, True, True, False]])
GSPO = ObjectiveConfig(surrogate="sequence", aggregation="sequence", clip_low=0.1, clip_high=0.2)
CISPO = ObjectiveConfig(surrogate="weight", aggregation="token", clip_low=1.0, clip_high=0.5)


def run(
    gaps: list[float], advantage: float, objective: ObjectiveConfig
) -> tuple[float, list[float], dict[str, Tensor]]:
    """Loss, gradient of the three trained log-probabilities, metrics; the fourth token must have none."""
    logp = (OLD + torch.tensor([[*gaps, 5.0]])).requires_grad_()
    divisor = denominator(MASK, objective, 3)
    loss, metrics = policy_loss(logp, OLD, torch.tensor([advantage]), MASK, objective, divisor)
    loss.backward()
    assert logp.grad is not None and float(logp.grad[0, 3]) == 0.0
    return loss.item(), logp.grad[0, :3].tolist(), metrics


def test_gspo_takes_one_ratio_per_answer_from_the_mean_over_trained_tokens() -> None:
    ratio = math.exp((0.3 - 0.1 + 0.04) / 3)  # 1.083
    loss, gradient, metrics = run([0.3, -0.1, 0.04], 2.0, GSPO)
    assert loss == pytest.approx(-2 * ratio)
    assert gradient == pytest.approx([-2 * ratio / 3] * 3)  # d ratio / d logp_t = ratio / 3 for every token
    assert int(metrics["clip_high"]) == 0  # though the first token's own ratio is 1.35


def test_gspo_clips_whole_answers() -> None:
    loss, gradient, metrics = run([0.9, -0.1, 0.1], 2.0, GSPO)  # ratio 1.35
    assert loss == pytest.approx(-2 * 1.2)
    assert gradient == [0.0, 0.0, 0.0]
    assert int(metrics["clip_high"]) == int(metrics["tokens"]) == 3
    loss, gradient, metrics = run([0.9, -0.1, 0.1], -2.0, GSPO)  # bad and likelier: pushed down all the same
    assert loss == pytest.approx(2 * math.exp(0.3))
    assert gradient == pytest.approx([2 * math.exp(0.3) / 3] * 3)
    loss, gradient, metrics = run([-0.9, 0.1, -0.1], -2.0, GSPO)
    assert loss == pytest.approx(2 * 0.9)
    assert gradient == [0.0, 0.0, 0.0] and int(metrics["clip_low"]) == 3


def test_cispo_keeps_a_gradient_where_ppo_cuts_it() -> None:
    gaps = [math.log(3.0), math.log(0.2), 0.0]
    loss, gradient, metrics = run(gaps, 2.0, CISPO)
    weights = [1.5, 0.2, 1.0]  # clipped above at 1.5, never below
    logps = [float(old) + gap for old, gap in zip(OLD[0], gaps, strict=False)]
    assert loss == pytest.approx(-2 / 3 * sum(w * p for w, p in zip(weights, logps, strict=True)), rel=1e-5)
    assert gradient == pytest.approx([-2 / 3 * w for w in weights], rel=1e-5)
    assert int(metrics["clip_high"]) == 1
    ppo = ObjectiveConfig(clip_low=0.5, clip_high=0.5)
    _, cut, _ = run(gaps, 2.0, ppo)
    assert cut[0] == 0.0 and gradient[0] < 0
    _, cut, _ = run(gaps, -2.0, ppo)
    _, gradient, _ = run(gaps, -2.0, CISPO)
    assert cut[1] == 0.0 and gradient[1] == pytest.approx(2 / 3 * 0.2)


@pytest.mark.parametrize("name", sorted(set(OBJECTIVES) - {"ppo"}))
def test_on_its_own_samples_every_member_has_the_plain_policy_gradient(name: str) -> None:
    """At a ratio of 1 all of them push log p by the advantage, over what the answer's tokens are divided by."""
    objective = named_objective(name)
    logp = OLD.clone().requires_grad_()
    ref = OLD if objective.kl_beta else None  # at the reference itself no estimator pulls
    loss, metrics = policy_loss(logp, OLD, torch.tensor([2.0]), MASK, objective, denominator(MASK, objective, 3), ref)
    loss.backward()
    assert logp.grad is not None
    torch.testing.assert_close(logp.grad, -2 * MASK / 3)
    assert sum(int(count) for key, count in metrics.items() if key.startswith("clip_")) == 0


def test_an_entropy_bonus_adds_its_weighted_mean_and_its_gradient() -> None:
    objective = ObjectiveConfig(entropy_weight=0.5)
    entropy = torch.tensor([[1.0, 2.0, 4.0, 100.0]]).requires_grad_()
    loss, _ = policy_loss(OLD, None, torch.zeros(1), MASK, objective, 3, entropy=entropy)
    loss.backward()
    assert loss.item() == pytest.approx(-0.5 * 7 / 3)
    assert entropy.grad is not None
    torch.testing.assert_close(entropy.grad, torch.tensor([[-0.5 / 3] * 3 + [0.0]]))
    with pytest.raises(ValueError, match=r"entropy_weight=0\.5 needs the entropies"):
        policy_loss(OLD, None, torch.zeros(1), MASK, objective, 3)
