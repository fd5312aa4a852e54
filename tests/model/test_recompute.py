"""What is computed again against what is kept: the same loss, gradients and notes, from fewer bytes."""

import pytest
import torch
from torch import Tensor

from fathom.config import AttentionConfig, ModelConfig, MoEConfig
from fathom.model import RoutingTrace, Transformer
from fathom.model.block import Block
from fathom.model.recompute import Recompute

MODEL = ModelConfig(
    vocab_size=32,
    hidden_size=32,
    num_hidden_layers=2,
    intermediate_size=64,
    initializer_range=0.2,
    attention=AttentionConfig(
        num_attention_heads=4,
        num_key_value_heads=4,
        q_lora_rank=8,
        kv_lora_rank=8,
        qk_nope_head_dim=8,
        qk_rope_head_dim=4,
        v_head_dim=8,
    ),
    moe=MoEConfig(n_routed_experts=4, moe_intermediate_size=16, first_k_dense_replace=1, seq_aux_alpha=0.1),
)
TOKENS = torch.arange(48).view(2, 24) * 7 % 32


def run(recompute: Recompute, replay: Tensor | None = None) -> tuple[Tensor, list[Tensor], RoutingTrace, int]:
    """Loss, gradients, notes, and the bytes that the forward pass keeps beside the weights."""
    model = Transformer(MODEL)
    model.initialise(torch.Generator().manual_seed(0))
    for module in model.modules():
        if isinstance(module, Block):
            module.recompute = recompute
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    trace = RoutingTrace(records=True, replay=replay)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        hidden = model(TOKENS, trace=trace)
    loss = hidden.square().mean() + 0.1 * torch.stack(trace.balance).sum()
    loss.backward()
    return loss.detach(), [p.grad for p in model.parameters() if p.grad is not None], trace, sum(kept.values())


@pytest.mark.parametrize("recompute", ["selective", "full"])
@pytest.mark.parametrize("replayed", [False, True])
def test_what_is_computed_again_is_the_same(recompute: Recompute, replayed: bool) -> None:
    replay = torch.randint(0, 4, (1, 2, 24, 2), generator=torch.Generator().manual_seed(1)) if replayed else None
    loss, gradients, trace, _kept = run("none", replay)
    again = run(recompute, replay)
    assert torch.equal(again[0], loss)
    for found, wanted in zip(again[1], gradients, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-7)
    assert len(again[2].loads) == len(again[2].balance) == len(again[2].experts) == 1  # noted once
    assert torch.equal(again[2].loads[0], trace.loads[0])


def test_the_more_is_computed_again_the_less_is_kept() -> None:
    none, full = (run(recompute)[3] for recompute in ("none", "full"))
    assert full < none / 4
