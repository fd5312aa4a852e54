"""Experts: who is chosen, what comes out, how the bias moves."""

import pytest
import torch
import torch.nn.functional as F

from fathom.config import ModelConfig, MoEConfig
from fathom.model import RoutingTrace, Transformer, update_selection_bias
from fathom.model.moe import MoE, max_violation, moe_layers


def layer(**fields: object) -> MoE:
    shape = {"n_routed_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 6}
    moe = MoE(ModelConfig(hidden_size=12, moe=MoEConfig(**{**shape, **fields})))
    generator = torch.Generator().manual_seed(0)
    for _, tensor in sorted(moe.state_dict().items()):
        tensor.copy_(0.4 * torch.randn(tensor.shape, generator=generator))
    return moe


def states(batch: int = 2, time: int = 5) -> torch.Tensor:
    return torch.randn(batch, time, 12, generator=torch.Generator().manual_seed(1))


def swiglu(x: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
    gate, up = (x @ gate_up.T).chunk(2, dim=-1)
    return (F.silu(gate) * up) @ down.T


@torch.no_grad()
def test_output_is_the_shared_expert_and_the_weighted_chosen_ones() -> None:
    moe, x = layer(routed_scaling_factor=2.5, n_shared_experts=2), states()
    found = moe(x)
    for token, out in zip(x.flatten(0, 1), found.flatten(0, 1), strict=True):
        scores = (moe.router.weight @ token).sigmoid()
        chosen = (scores + moe.router.selection_bias).topk(3).indices
        shares = 2.5 * scores[chosen] / scores[chosen].sum()
        routed = sum(
            share * swiglu(token, moe.gate_up[expert], moe.down[expert])
            for expert, share in zip(chosen, shares, strict=True)
        )
        expected = routed + swiglu(token, moe.shared.gate_up.weight, moe.shared.down.weight)
        torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_gate_weights_sum_to_the_scaling_factor() -> None:
    _, _, weights, _ = layer(routed_scaling_factor=2.5).router(states().flatten(0, 1))
    torch.testing.assert_close(weights.sum(-1), torch.full((10,), 2.5))


@torch.no_grad()
def test_the_bias_changes_who_is_chosen_and_nothing_else() -> None:
    router, x = layer().router, states().flatten(0, 1)
    router.selection_bias.zero_()
    scores, before, *_ = router(x)
    router.selection_bias[5] = 10.0
    again, after, weights, _ = router(x)
    assert torch.equal(scores, again)
    assert (after == 5).any(-1).all()
    assert not (before == 5).any(-1).all()
    expected = scores.gather(1, after)  # without the bias
    torch.testing.assert_close(weights, expected / expected.sum(-1, keepdim=True))
    router.selection_bias.fill_(10.0)  # the same for all changes nothing
    assert torch.equal(router(x)[1].sort(-1).values, before.sort(-1).values)


@torch.no_grad()
def test_softmax_scoring_has_no_bias() -> None:
    moe = layer(scoring_func="softmax", topk_method="greedy", norm_topk_prob=False, routed_scaling_factor=16.0)
    x = states().flatten(0, 1)
    scores, experts, weights, _ = moe.router(x)
    torch.testing.assert_close(scores, (x @ moe.router.weight.T).softmax(-1))
    assert torch.equal(experts, scores.topk(3).indices)
    torch.testing.assert_close(weights, 16 * scores.gather(1, experts))


def test_gradients_reach_router_and_experts_but_not_the_bias() -> None:
    moe = layer()
    moe(states()).square().sum().backward()
    assert all((parameter.grad != 0).any() for parameter in moe.parameters())
    assert "router.selection_bias" not in dict(moe.named_parameters())
    assert "router.selection_bias" in moe.state_dict()


def test_trace_counts_valid_tokens() -> None:
    moe, x = layer(), states()
    every = RoutingTrace()
    moe(x, every)
    assert every.loads[0].sum() == 10 * 3
    valid = torch.ones(2, 5)
    valid[1, 2:] = 0
    some = RoutingTrace(valid=valid)
    moe(x, some)
    experts = moe.router(x.flatten(0, 1))[1].view(2, 5, 3)
    counted = torch.cat((experts[0].flatten(), experts[1, :2].flatten()))
    assert some.loads[0].tolist() == torch.bincount(counted, minlength=8).tolist()
    assert len(some.balance) == 1
    assert some.balance[0].requires_grad


def test_bias_rises_for_idle_experts_and_falls_for_busy_ones() -> None:
    config = ModelConfig(vocab_size=16, num_hidden_layers=2, moe=MoEConfig(first_k_dense_replace=1))
    model = Transformer(config)
    model.initialise(torch.Generator().manual_seed(0))
    loads = torch.tensor([[10, 30, 20, 20], [0, 0, 0, 40]])  # one MoE layer and that of the MTP module
    for _ in range(3):
        update_selection_bias(model, loads, speed=1e-3)
    first, second = (moe.router.selection_bias for moe in moe_layers(model))
    torch.testing.assert_close(first, torch.tensor([3e-3, -3e-3, 0.0, 0.0]))
    torch.testing.assert_close(second, torch.tensor([3e-3, 3e-3, 3e-3, -3e-3]))
    update_selection_bias(model, loads, speed=0.0)
    torch.testing.assert_close(first, torch.tensor([3e-3, -3e-3, 0.0, 0.0]))


def test_moving_the_bias_evens_the_load() -> None:
    """Loss-free balancing brings MaxVio down although no weight changes."""
    moe = layer(n_routed_experts=8, num_experts_per_tok=2)
    moe.router.selection_bias.zero_()
    x = torch.randn(1, 400, 12, generator=torch.Generator().manual_seed(2)) + 0.5

    def load() -> torch.Tensor:
        trace = RoutingTrace()
        with torch.no_grad():
            moe(x, trace)
        return trace.loads[0].unsqueeze(0)

    before = max_violation(load()).item()
    for _ in range(200):
        update_selection_bias(moe, load(), speed=5e-3)
    assert before > 0.7
    assert max_violation(load()).item() < 0.1


def test_max_violation() -> None:
    loads = torch.tensor([[10, 10, 10, 10], [40, 0, 0, 0], [15, 5, 10, 10]])
    assert max_violation(loads).tolist() == pytest.approx([0.0, 3.0, 0.5])
