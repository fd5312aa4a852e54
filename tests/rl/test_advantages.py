"""Advantages, dead groups and denominators: what a reward becomes before it meets the policy."""

import pytest
import torch

from fathom.config import ObjectiveConfig
from fathom.rl.grpo import advantages, denominator, keep_groups, lengths_by_outcome, loss_mask, overlong_penalty

MEAN = ObjectiveConfig(advantage="mean")
MEAN_STD = ObjectiveConfig(advantage="mean_std")
ONE_GROUP = torch.zeros(8, dtype=torch.long)


def test_both_forms_by_hand() -> None:
    rewards, groups = torch.tensor([1.0, 0, 0, 1, 1, 0]), torch.tensor([5, 5, 5, 5, 2, 2])
    assert advantages(rewards, groups, MEAN).tolist() == [0.5, -0.5, -0.5, 0.5, 0.5, -0.5]
    # n - 1 in the std: sqrt(4 * 0.25 / 3) and sqrt(2 * 0.25 / 1)
    expected = torch.tensor([1.0, -1, -1, 1]) * 0.5 / (1 / 3) ** 0.5
    scaled = advantages(rewards, groups, MEAN_STD)
    torch.testing.assert_close(scaled[:4], expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(scaled[4:], torch.tensor([0.5, -0.5]) / 0.5**0.5, rtol=1e-5, atol=0)


@pytest.mark.parametrize("reward", [0.7, 0.1, 1.1, 1 / 3])
@pytest.mark.parametrize("eps", [1e-4, 1e-6, 1e-8, 0.0])
@pytest.mark.parametrize("objective", [MEAN, MEAN_STD])
def test_equal_groups_give_exactly_zero_whatever_the_eps(reward: float, eps: float, objective: ObjectiveConfig) -> None:
    assert advantages(torch.full((8,), reward), ONE_GROUP, objective, eps).tolist() == [0.0] * 8


def test_rounding_noise_of_an_equal_group_would_otherwise_be_divided_by_itself() -> None:
    """Eight rewards of 0.7, their mean one float32 step off, as a sum taken one by one leaves it."""
    rewards = torch.full((8,), 0.7)
    total = torch.zeros(())
    for reward in rewards:
        total = total + reward
    deviation = rewards - total / 8
    noise = (deviation.square().sum() / 7).sqrt()
    assert float(noise) == pytest.approx(6.4e-8, rel=0.01)
    for eps, measured in [(1e-4, 6e-4), (1e-6, 0.056), (1e-8, 0.81)]:
        assert float(deviation.abs().max() / (noise + eps)) == pytest.approx(measured, rel=0.02)


def test_a_tiny_spread_of_shaped_rewards_still_shouts_through_the_std() -> None:
    rewards = torch.zeros(8)
    rewards[0] = 1e-5
    assert float(advantages(rewards, ONE_GROUP, MEAN_STD)[0]) == pytest.approx(1.93, abs=0.01)
    assert float(advantages(rewards, ONE_GROUP, MEAN)[0]) == pytest.approx(8.75e-6)


def test_std_scaling_shift_and_scale_invariance() -> None:
    generator = torch.Generator().manual_seed(0)
    rewards, groups = torch.rand(32, generator=generator), torch.arange(32) // 8
    for objective in (MEAN, MEAN_STD):
        shifted = advantages(rewards + 3, groups, objective)
        torch.testing.assert_close(shifted, advantages(rewards, groups, objective), rtol=1e-4, atol=1e-5)
    scaled = advantages(10 * rewards, groups, MEAN_STD)
    torch.testing.assert_close(scaled, advantages(rewards, groups, MEAN_STD), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(advantages(10 * rewards, groups, MEAN), 10 * advantages(rewards, groups, MEAN))


def test_grouping_key_is_an_id_so_one_question_drawn_twice_stays_two_groups() -> None:
    rewards = torch.tensor([1.0, 1, 1, 0, 0, 0, 0, 1])
    apart = advantages(rewards, torch.tensor([7, 7, 7, 7, 9, 9, 9, 9]), MEAN)
    merged = advantages(rewards, torch.tensor([7] * 8), MEAN)
    assert apart.tolist() == [0.25, 0.25, 0.25, -0.75, -0.25, -0.25, -0.25, 0.75]
    assert merged.tolist() == [0.5, 0.5, 0.5, -0.5, -0.5, -0.5, -0.5, 0.5]


def test_row_order_and_interleaving_do_not_matter() -> None:
    rewards, groups = torch.tensor([1.0, 0, 0, 0.5, 1, 0]), torch.tensor([0, 1, 0, 1, 0, 1])
    order = torch.tensor([4, 1, 5, 0, 3, 2])
    for objective in (MEAN, MEAN_STD):
        whole = advantages(rewards, groups, objective)
        torch.testing.assert_close(advantages(rewards[order], groups[order], objective), whole[order])


def test_dead_groups_are_found_by_exact_equality() -> None:
    groups = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])
    rewards = torch.tensor([0.1, 0.1, 0.0, 1.1, 1.1, 1.1, 0.7, 0.70000005])
    assert keep_groups(rewards, groups).tolist() == [False, False, True, True, False, False, True, True]


def test_dead_groups_are_judged_on_raw_rewards_not_on_shaped_ones() -> None:
    accuracy, groups = torch.tensor([1.0, 1.0, 1.0, 0.0]), torch.tensor([0, 0, 1, 1])
    shaped = accuracy + overlong_penalty(torch.tensor([10, 19, 10, 12]), 20, 10)
    assert keep_groups(accuracy, groups).tolist() == [False, False, True, True]
    assert keep_groups(shaped, groups).tolist() == [True, True, True, True]


def test_ungraded_answers_leave_baseline_and_loss_instead_of_counting_as_wrong() -> None:
    nan = float("nan")
    rewards, groups = torch.tensor([1.0, 0.0, nan, 1.0, nan, nan, 1.0, nan]), torch.tensor([0, 0, 0, 1, 1, 1, 2, 2])
    assert advantages(rewards, groups, MEAN).tolist() == [0.5, -0.5, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    expected = torch.tensor([1.0, -1.0]) / 2**0.5
    torch.testing.assert_close(advantages(rewards, groups, MEAN_STD)[:2], expected, rtol=1e-5, atol=0)
    assert keep_groups(rewards, groups).tolist() == [True, True] + [False] * 6


MASK = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1], [1, 0, 0, 0], [0, 0, 0, 0]], dtype=torch.bool)


@pytest.mark.parametrize(("aggregation", "value"), [("token", 8), ("sequence", 3), ("constant", 12)])
def test_three_global_denominators_that_add_over_workers(aggregation: str, value: int) -> None:
    objective = ObjectiveConfig(aggregation=aggregation)  # pyright: ignore[reportArgumentType]
    assert int(denominator(MASK, objective, max_tokens=4)) == value
    parts = denominator(MASK[:1], objective, 4) + denominator(MASK[1:], objective, 4)
    assert int(parts) == value
    padded = torch.nn.functional.pad(MASK, (0, 5))
    assert int(denominator(padded, objective, 4)) == value


def test_truncated_answers_are_masked_only_when_asked_and_stay_in_the_baseline() -> None:
    truncated = torch.tensor([False, True, False, False])
    kept = loss_mask(MASK, truncated, ObjectiveConfig(mask_truncated=False))
    masked = loss_mask(MASK, truncated, ObjectiveConfig(mask_truncated=True))
    assert torch.equal(kept, MASK)
    assert masked.sum(1).tolist() == [3, 0, 1, 0]
    # the denominators change with the tokens, visibly: these counts are what a log shows
    counts = [int(denominator(m, ObjectiveConfig(), 4)) for m in (kept, masked)]
    assert counts == [8, 4]
    # the cut answer's reward still moves the others' baseline: a mean of 0.5, not 1
    rewards = torch.tensor([1.0, 0.0, 1.0, 0.0])
    assert advantages(rewards, torch.zeros(4, dtype=torch.long), MEAN).tolist() == [0.5, -0.5, 0.5, -0.5]


def test_overlong_penalty_of_dapo() -> None:
    lengths = torch.tensor([0, 16_384, 18_432, 20_480, 30_000])
    assert overlong_penalty(lengths, 20_480, 4_096).tolist() == [0.0, 0.0, -0.5, -1.0, -1.0]


def test_length_bias_shows_in_lengths_of_correct_and_wrong_answers_apart() -> None:
    lengths = torch.tensor([10, 20, 40, 60, 100])
    accuracy = torch.tensor([1.0, 1.0, 0.0, 0.0, float("nan")])
    assert lengths_by_outcome(lengths, accuracy) == {"length": 46.0, "length_correct": 15.0, "length_wrong": 50.0}
    assert lengths_by_outcome(lengths[:2], accuracy[:2]) == {"length": 15.0, "length_correct": 15.0}
