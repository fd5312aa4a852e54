"""Generalised advantages against their definition, whitening, and the critic's loss by hand."""

import pytest
import torch
from torch import Tensor

from fathom.parallel.world import World
from fathom.rl.gae import gae, token_rewards, value_loss, whiten

ALONE = World(0, 1, torch.device("cpu"))
MASK = torch.tensor([[0, 0, 1, 1, 1, 0], [0, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0]], dtype=torch.bool)
REWARDS = token_rewards(torch.tensor([1.0, -0.5, float("nan")]), MASK)
VALUES = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))


def by_definition(rewards: list[float], values: list[float], gamma: float, lam: float) -> list[float]:
    """A_t = sum_l (gamma lambda)^l delta_{t+l} (GAE eq. 16)."""
    values = [*values, 0.0]
    deltas = [r + gamma * values[t + 1] - values[t] for t, r in enumerate(rewards)]
    return [sum((gamma * lam) ** (k - t) * deltas[k] for k in range(t, len(deltas))) for t in range(len(deltas))]


def test_the_reward_comes_with_the_last_token_and_a_kl_is_taken_off_every_one() -> None:
    assert REWARDS.tolist() == [[0, 0, 0, 0, 1, 0], [0, 0, 0, 0, 0, -0.5], [0] * 6]
    paid = token_rewards(torch.tensor([1.0, -0.5, 0.0]), MASK, torch.full((3, 6), 0.25))
    assert paid[0].tolist() == [0, 0, -0.25, -0.25, 0.75, 0]
    assert paid[2].tolist() == [0] * 6


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 1.0), (0.9, 0.95), (1.0, 0.0), (0.5, 1.0)])
def test_advantages_are_those_of_the_definition(gamma: float, lam: float) -> None:
    advantages, returns = gae(REWARDS, VALUES, MASK, gamma, lam)
    for row in range(2):
        marked = MASK[row]
        wanted = torch.tensor(by_definition(REWARDS[row][marked].tolist(), VALUES[row][marked].tolist(), gamma, lam))
        torch.testing.assert_close(advantages[row][marked], wanted)
        torch.testing.assert_close(returns[row][marked], wanted + VALUES[row][marked])
    assert not advantages[~MASK].any() and not returns[~MASK].any()


def test_without_discount_the_return_is_the_reward_itself() -> None:
    """TinyZero's gamma 1, lambda 1: every token is compared with what the answer earned."""
    advantages, returns = gae(REWARDS, VALUES, MASK, 1.0, 1.0)
    torch.testing.assert_close(returns[0][MASK[0]], torch.ones(3))
    torch.testing.assert_close(advantages[1][MASK[1]], -0.5 - VALUES[1][MASK[1]])


@pytest.mark.parametrize("width", [6, 9])
def test_padding_and_batch_mates_change_nothing(width: int) -> None:
    def pad(x: Tensor) -> Tensor:
        return torch.nn.functional.pad(x, (0, width - 6))

    together = gae(REWARDS, VALUES, MASK, 0.9, 0.8)[0]
    for row in range(3):
        one = slice(row, row + 1)
        alone = gae(pad(REWARDS[one]), pad(VALUES[one]), pad(MASK[one]), 0.9, 0.8)[0]
        assert torch.equal(alone, pad(together[one]))


def test_whitened_advantages_do_not_depend_on_how_the_rollout_is_cut() -> None:
    advantages, _ = gae(REWARDS, VALUES, MASK, 1.0, 1.0)
    (whole,) = whiten([advantages], [MASK], ALONE)
    parts = whiten(list(advantages.split(1)), list(MASK.split(1)), ALONE)
    torch.testing.assert_close(torch.cat(parts), whole)
    marked = whole[MASK]
    assert float(marked.mean()) == pytest.approx(0, abs=1e-6)
    assert float(marked.var()) == pytest.approx(1, abs=1e-5)
    assert not whole[~MASK].any()
    equal = whiten([torch.full((3, 6), 0.7)], [MASK], ALONE)[0]
    assert float(equal.abs().max()) < 1e-3  # nothing to compare is no noise blown up


def test_the_value_loss_by_hand() -> None:
    mask = torch.tensor([[True, True, True, False]])
    values = torch.tensor([[0.3, 2.0, -1.0, 50.0]]).requires_grad_()
    old, returns = torch.tensor([[0.0, 1.0, 0.0, 0.0]]), torch.tensor([[1.0, 1.0, -2.0, 0.0]])
    loss, parts = value_loss(values, old, returns, mask, 0.5, 3)
    # 0.3 lies within the clip; 2.0 is wrong by more than 1.5 would be; -1 moved too far towards -2
    assert loss.item() == pytest.approx((0.49 + 1.0 + 2.25) / 6)
    loss.backward()
    assert values.grad is not None
    torch.testing.assert_close(values.grad, torch.tensor([[-0.7 / 3, 1.0 / 3, 0.0, 0.0]]))
    assert int(parts["value_clip"]) == 1
    free, _ = value_loss(values, old, returns, mask, 0.0, 3)
    assert free.item() == pytest.approx((0.49 + 1.0 + 1.0) / 6)
