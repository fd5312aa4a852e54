"""A prompt computed once for many answers: states, gradients and loads as those of whole rows."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from fathom.config import AttentionConfig, ModelConfig, MoEConfig
from fathom.model import RoutingTrace, Transformer
from fathom.model.shared import Shared, forward_shared

MODEL = ModelConfig(
    vocab_size=40,
    hidden_size=24,
    num_hidden_layers=3,
    initializer_range=0.2,
    num_nextn_predict_layers=1,
    attention=AttentionConfig(num_attention_heads=2, num_key_value_heads=2, kv_lora_rank=12),
    moe=MoEConfig(n_routed_experts=6, num_experts_per_tok=2, moe_intermediate_size=8),
)
GROUPS, PROMPTS, ANSWERS = [7, 3, 7, 3, 9], [5, 2, 5, 2, 3], [4, 9, 1, 3, 6]  # group, prompt and answer of each row


def rows() -> tuple[Tensor, Tensor]:
    """Tokens (N, T), padded on the right, and where they are real."""
    generator = torch.Generator().manual_seed(1)
    prompts = {g: torch.randint(1, 40, (p,), generator=generator) for g, p in zip(GROUPS, PROMPTS, strict=True)}
    width = max(p + a for p, a in zip(PROMPTS, ANSWERS, strict=True))
    tokens, valid = torch.zeros(len(GROUPS), width, dtype=torch.long), torch.zeros(len(GROUPS), width)
    for row, (group, answer) in enumerate(zip(GROUPS, ANSWERS, strict=True)):
        whole = torch.cat((prompts[group], torch.randint(1, 40, (answer,), generator=generator)))
        tokens[row, : len(whole)], valid[row, : len(whole)] = whole, 1
    return tokens, valid


def passed(config: ModelConfig, shares: bool, replay: Tensor | None = None) -> tuple[Tensor, Tensor, RoutingTrace]:
    """States where tokens are real, the gradient of their weighted sum, and the trace."""
    model = Transformer(config)
    model.initialise(torch.Generator().manual_seed(0))
    tokens, valid = rows()
    trace = RoutingTrace(valid, replay, records=True)
    if shares:
        hidden = forward_shared(
            model, tokens, Shared.of(torch.tensor(GROUPS), torch.tensor(PROMPTS), tokens.shape[1]), trace
        )
    else:
        hidden = model(tokens, trace=trace)
    weights = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(2)) * valid.unsqueeze(-1)
    (hidden * weights).sum().backward()
    gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    return hidden.detach() * valid.unsqueeze(-1), gradient, trace


@pytest.mark.parametrize("kind", ["mla", "gqa", "absorbed"])
def test_states_gradient_and_loads_are_those_of_whole_rows(kind: str) -> None:
    attention = replace(MODEL.attention, kind="gqa" if kind == "gqa" else "mla")
    if kind == "absorbed":  # a latent so narrow that absorbing it is always cheaper
        attention = replace(attention, kv_lora_rank=4)
    config = replace(MODEL, attention=attention, num_nextn_predict_layers=0)
    expected, gradient, trace = passed(config, shares=False)
    found, found_gradient, found_trace = passed(config, shares=True)
    assert float(gradient.abs().max()) > 1e-2
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(found_gradient, gradient, rtol=1e-4, atol=2e-5)
    assert [load.tolist() for load in found_trace.loads] == [load.tolist() for load in trace.loads]
    _, valid = rows()
    for one, other in zip(found_trace.experts, trace.experts, strict=True):
        assert torch.equal(one[valid > 0].sort(-1).values, other[valid > 0].sort(-1).values)


def test_recorded_experts_are_repeated() -> None:
    generator = torch.Generator().manual_seed(3)
    layers, (count, width) = 2, rows()[0].shape
    replay = torch.stack([torch.rand(count, width, 6, generator=generator).topk(2).indices for _ in range(layers)])
    for row in range(count):  # a group has one routing of its prompt
        replay[:, row, : PROMPTS[row]] = replay[:, GROUPS.index(GROUPS[row]), : PROMPTS[row]]
    config = replace(MODEL, num_nextn_predict_layers=0)
    expected, gradient, _ = passed(config, shares=False, replay=replay)
    found, found_gradient, trace = passed(config, shares=True, replay=replay)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(found_gradient, gradient, rtol=1e-4, atol=2e-5)
    assert torch.equal(trace.experts[0][rows()[1] > 0], replay[0][rows()[1] > 0])
    other, _, _ = passed(config, shares=True)
    assert float((other - found).abs().max()) > 1e-3


def test_a_prompt_is_computed_once() -> None:
    model = Transformer(MODEL)
    model.initialise(torch.Generator().manual_seed(0))
    seen: list[int] = []
    model.layers[0].register_forward_hook(lambda _, args, out: seen.append(out.shape[0] * out.shape[1]))
    tokens, _ = rows()
    with torch.no_grad():
        forward_shared(
            model, tokens, Shared.of(torch.tensor(GROUPS), torch.tensor(PROMPTS), tokens.shape[1]), RoutingTrace()
        )
    assert seen == [3 * max(PROMPTS), 5 * (tokens.shape[1] - min(PROMPTS))]
