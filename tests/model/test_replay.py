"""Recorded routing: the sampler's selections, the trainer's gate weights and gradients (R3)."""

import copy

import pytest
import torch
from torch import Tensor

from fathom.config import AttentionConfig, ModelConfig, MoEConfig
from fathom.kernels.router import gate_weights
from fathom.model import RoutingTrace, Transformer
from fathom.model.moe import MoE, moe_layers

CONFIG = ModelConfig(
    vocab_size=40,
    hidden_size=16,
    num_hidden_layers=3,
    initializer_range=0.3,
    attention=AttentionConfig(
        num_attention_heads=2,
        num_key_value_heads=2,
        kv_lora_rank=8,
        qk_nope_head_dim=4,
        qk_rope_head_dim=4,
        v_head_dim=4,
    ),
    moe=MoEConfig(n_routed_experts=8, num_experts_per_tok=2, moe_intermediate_size=8, first_k_dense_replace=1),
)
TOKENS = torch.randint(40, (3, 7), generator=torch.Generator().manual_seed(5))


def model(seed: int = 0) -> Transformer:
    built = Transformer(CONFIG)
    built.initialise(torch.Generator().manual_seed(seed))
    for layer in moe_layers(built):
        layer.router.selection_bias.normal_(0, 0.1, generator=torch.Generator().manual_seed(seed + 9))
    return built


def drifted() -> Transformer:
    """The policy a few updates on: other weights, other choices."""
    later = model()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in later.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return later


def record(of: Transformer, tokens: Tensor = TOKENS) -> Tensor:
    trace = RoutingTrace(records=True)
    with torch.no_grad():
        of(tokens, trace=trace)
    return torch.stack(trace.experts)


def test_forced_routing_is_the_recorded_one_and_changes_nothing_in_the_model_that_recorded_it() -> None:
    policy, later = model(), drifted()
    recorded = record(policy)
    assert recorded.shape == (2, 3, 7, 2)
    assert not torch.equal(record(later), recorded)  # left alone the later policy chooses others
    trace = RoutingTrace(replay=recorded, records=True)
    later(TOKENS, trace=trace)
    assert torch.equal(torch.stack(trace.experts), recorded)
    counts = torch.stack([layer.flatten().bincount(minlength=8) for layer in recorded])
    assert torch.equal(torch.stack(trace.loads), counts)
    assert torch.equal(policy(TOKENS, trace=RoutingTrace(replay=recorded)), policy(TOKENS))


def test_gate_weights_are_recomputed_from_the_live_router() -> None:
    moe, x = next(moe_layers(drifted())), torch.randn(5, 16, generator=torch.Generator().manual_seed(1))
    replay = torch.tensor([[0, 7], [3, 2], [6, 1], [5, 4], [2, 0]])
    scores, experts, weights, _ = moe.router(x, replay)
    assert torch.equal(experts, replay)
    live = (x @ moe.router.weight.T).sigmoid()
    torch.testing.assert_close(scores, live)
    for token, (row, chosen) in enumerate(zip(live, replay, strict=True)):
        torch.testing.assert_close(weights[token], row[chosen] / row[chosen].sum())
    torch.testing.assert_close(weights, gate_weights(live, replay, True, 1.0))


def test_the_router_keeps_its_gradient_and_a_second_pass_repeats_it_bit_for_bit() -> None:
    recorded = record(model())

    def gradients() -> list[Tensor]:
        later = drifted()
        later(TOKENS, trace=RoutingTrace(replay=recorded)).square().mean().backward()
        found = [layer.router.weight.grad for layer in moe_layers(later) if layer.router.weight.grad is not None]
        assert len(found) == 2  # the MTP module takes no part
        return found

    first, again = gradients(), gradients()
    for one, two in zip(first, again, strict=True):
        assert float(one.abs().max()) > 1e-6
        assert torch.equal(one, two)


def test_a_forced_layer_by_a_slow_loop_over_tokens() -> None:
    moe: MoE = next(moe_layers(drifted()))
    x = torch.randn(1, 4, 16, generator=torch.Generator().manual_seed(2))
    replay = torch.tensor([[[[0, 1], [1, 0], [7, 3], [4, 5]]]])
    found = moe(x, RoutingTrace(replay=replay))
    for token, experts, out in zip(x[0], replay[0, 0], found[0], strict=True):
        scores = (moe.router.weight @ token).sigmoid()[experts]
        wanted = moe.shared(token) if moe.shared is not None else torch.zeros(16)
        for expert, share in zip(experts, scores / scores.sum(), strict=True):
            gate, up = (token @ moe.gate_up[expert].T).chunk(2)
            wanted = wanted + share * ((torch.nn.functional.silu(gate) * up) @ moe.down[expert].T)
        torch.testing.assert_close(out, wanted, atol=1e-5, rtol=1e-4)


def test_tokens_without_a_record_choose_for_themselves() -> None:
    policy, later = model(), drifted()
    recorded = record(policy)
    recorded[:, 1, 3:] = -1
    trace = RoutingTrace(replay=recorded, records=True)
    later(TOKENS, trace=trace)
    first, own = trace.experts[0], record(later)[0]  # the first MoE layer sees the same states either way
    assert torch.equal(first[0], recorded[0, 0]) and torch.equal(first[1, :3], recorded[0, 1, :3])
    assert torch.equal(first[1, 3:], own[1, 3:])


def test_padding_that_is_recorded_as_unknown_leaves_the_loads_of_text_alone() -> None:
    policy = model()
    recorded = record(policy, TOKENS[:1, :5])
    padded = torch.nn.functional.pad(recorded, (0, 0, 0, 2), value=-1)
    valid = torch.tensor([[1.0, 1, 1, 1, 1, 0, 0]])
    trace = RoutingTrace(valid=valid, replay=padded)
    hidden = policy(TOKENS[:1], trace=trace)
    assert [int(load.sum()) for load in trace.loads] == [10, 10]
    torch.testing.assert_close(hidden[:, :5], policy(TOKENS[:1, :5]), atol=1e-6, rtol=1e-5)


def test_a_record_of_another_batch_is_refused() -> None:
    recorded = record(model())
    with pytest.raises(ValueError, match=r"MoE layer 0 have the shape \(21, 2\), but its tokens ask for \(18, 2\)"):
        model()(TOKENS[:, :6], trace=RoutingTrace(replay=recorded))


def test_passes_without_an_update_move_no_selection_bias() -> None:
    policy = model()
    before = copy.deepcopy(policy.state_dict())
    record(policy)
    for name, tensor in policy.state_dict().items():
        assert torch.equal(tensor, before[name]), name
