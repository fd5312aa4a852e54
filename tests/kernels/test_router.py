"""Choosing experts, by hand numbers."""

import math

import pytest
import torch

from fathom.kernels.router import choose_experts, expert_load, gate_weights, router_scores, sequence_balance_loss


def chosen(choice: list[float], **limits: int) -> set[int]:
    return set(choose_experts(torch.tensor([choice]), **limits)[0].tolist())


def test_scores() -> None:
    logits = torch.tensor([[0.0, math.log(3.0)]])
    torch.testing.assert_close(router_scores(logits, "sigmoid"), torch.tensor([[0.5, 0.75]]))
    torch.testing.assert_close(router_scores(logits, "softmax"), torch.tensor([[0.25, 0.75]]))


def test_without_groups_the_best_experts_win() -> None:
    assert chosen([0.1, 0.9, 0.4, 0.8], k=2) == {1, 3}


def test_experts_outside_the_best_groups_are_out_of_reach() -> None:
    # sums of the best two: 1.7, 1.0, 1.1 and 0.4; the best single expert, 3, sits in a lost group
    choice = [0.9, 0.8, 0.05, 0.95, 0.6, 0.5, 0.2, 0.2]
    assert chosen(choice, k=3, n_group=4, topk_group=2) == {0, 1, 4}
    assert chosen(choice, k=3) == {0, 1, 3}


def test_negative_choices_stay_ahead_of_masked_experts() -> None:
    # sums -3, -3.1, -10 and -1.8 keep the first and the last group; a mask of 0 would let 2 to 5 win
    choice = [-1.0, -2.0, -3.0, -0.1, -5.0, -5.0, -0.9, -0.9]
    assert chosen(choice, k=3, n_group=4, topk_group=2) == {6, 7, 0}


def test_v2_scores_a_group_by_its_best_expert() -> None:
    choice = [0.30, 0.01, 0.25, 0.24]
    assert chosen(choice, k=1, n_group=2, topk_group=1, group_top=1) == {0}
    assert chosen(choice, k=1, n_group=2, topk_group=1, group_top=2) == {2}


def test_gate_weights_sum_to_the_scale() -> None:
    scores = torch.tensor([[0.5, 0.3, 0.1, 0.9]])
    experts = torch.tensor([[3, 1]])
    weights = gate_weights(scores, experts, normalise=True, scale=2.5)
    torch.testing.assert_close(weights, torch.tensor([[2.5 * 0.75, 2.5 * 0.25]]))
    torch.testing.assert_close(gate_weights(scores, experts, False, 16.0), torch.tensor([[14.4, 4.8]]))


def test_load_counts_every_pair() -> None:
    experts = torch.tensor([[0, 2], [2, 3], [2, 0]])
    assert expert_load(experts, 5).tolist() == [2, 0, 3, 1, 0]


def uniform_scores(experts: int) -> torch.Tensor:
    """As many tokens as experts, each preferring the next ones: all loads and mean shares are equal."""
    preference = torch.linspace(0.9, 0.1, experts)
    return torch.stack([preference.roll(token) for token in range(experts)]).unsqueeze(0)


@pytest.mark.parametrize("k", [1, 2, 5])
def test_balance_loss_is_one_at_uniform_routing(k: int) -> None:
    assert sequence_balance_loss(uniform_scores(8), k).item() == pytest.approx(1.0, abs=1e-6)


def test_balance_loss_by_hand() -> None:
    scores = torch.tensor([[[0.8, 0.2], [0.6, 0.4]], [[0.3, 0.7], [0.9, 0.1]]])
    # first row: all tokens on expert 0, f = (2, 0), P = (0.7, 0.3): 1.4; second: f = (1, 1): 1
    assert sequence_balance_loss(scores, 1).item() == pytest.approx(1.2)


def test_balance_loss_counts_valid_tokens_only() -> None:
    scores = torch.rand(2, 6, 8, generator=torch.Generator().manual_seed(0))
    valid = torch.ones(2, 6)
    valid[:, 4:] = 0
    torch.testing.assert_close(sequence_balance_loss(scores, 2, valid), sequence_balance_loss(scores[:, :4], 2))


def test_balance_gradient_pushes_the_busy_expert_down() -> None:
    scores = torch.tensor([[[0.8, 0.3, 0.2], [0.7, 0.3, 0.2]]], requires_grad=True)
    sequence_balance_loss(scores, 1).backward()
    assert (scores.grad[..., 0] > 0).all()
    assert (scores.grad[..., 1:] < 0).all()
