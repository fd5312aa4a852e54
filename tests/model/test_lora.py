"""Adapters against the weights that they stand for."""

import copy
from dataclasses import replace

import pytest
import torch

from fathom.config import AttentionConfig, LoRAConfig, ModelConfig, MoEConfig, OptimizerConfig
from fathom.model import Transformer
from fathom.model.lora import adapt, adapted_share, adapters, merge, take_back, trained_parameters
from fathom.train.step import TrainState

MODEL = ModelConfig(
    vocab_size=40,
    hidden_size=24,
    num_hidden_layers=2,
    initializer_range=0.2,
    attention=AttentionConfig(num_attention_heads=2, num_key_value_heads=2, kv_lora_rank=12, q_lora_rank=10),
    moe=MoEConfig(n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=8, first_k_dense_replace=1),
)
TOKENS = torch.randint(40, (3, 9), generator=torch.Generator().manual_seed(1))


def adapted(rank: int = 3, kind: str = "mla") -> Transformer:
    model = Transformer(replace(MODEL, attention=replace(MODEL.attention, kind=kind)))
    model.initialise(torch.Generator().manual_seed(0))
    adapt(model, LoRAConfig(rank=rank, alpha=6.0), seed=2)
    generator = torch.Generator().manual_seed(3)
    for _, adapter in adapters(model):  # as after some steps
        adapter.b.data.normal_(0.0, 0.1, generator=generator)
    merge(model)
    return model


def gradients(model: Transformer) -> None:
    weights = torch.randn(TOKENS.shape[0], TOKENS.shape[1], 24, generator=torch.Generator().manual_seed(4))
    (model(TOKENS) * weights).sum().backward()


@pytest.mark.parametrize("kind", ["mla", "gqa"])
def test_gradients_are_those_of_the_product(kind: str) -> None:
    model = adapted(kind=kind)
    whole = copy.deepcopy(model)
    for layer, _ in adapters(whole):
        layer.adapter = None
        layer.weight.requires_grad_(True)
    gradients(whole)
    gradients(model)
    plain = dict(whole.named_parameters())
    names = {id(layer): name for name, layer in model.named_modules()}
    assert len(adapters(model)) > 8
    for layer, adapter in adapters(model):
        slope = plain[f"{names[id(layer)]}.weight"].grad
        assert slope is not None
        torch.testing.assert_close(adapter.b.grad, 2 * slope @ adapter.a.detach().T, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(adapter.a.grad, 2 * adapter.b.detach().T @ slope, rtol=1e-4, atol=1e-5)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_sum_is_in_the_weights_to_the_bit() -> None:
    model = adapted()
    plain = copy.deepcopy(model).requires_grad_(True)
    for layer, _ in adapters(plain):
        layer.adapter = None
    assert torch.equal(model(TOKENS), plain(TOKENS))
    for layer, adapter in adapters(model):
        torch.testing.assert_close(layer.weight, adapter.base.float() + 2 * adapter.b @ adapter.a)


def test_a_step_moves_the_adapters_and_with_them_the_weights() -> None:
    model = adapted()
    before = copy.deepcopy(model.state_dict())
    state = TrainState.start(model, OptimizerConfig(lr=1e-2, weight_decay=0.0))
    gradients(model)
    state.optimizer.step()
    own = {id(layer.weight) for layer, _ in adapters(model)}
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) == (id(parameter) not in own), name
    kept = [tensor.clone() for tensor in state.copies["lora"]]
    after = copy.deepcopy(model.state_dict())
    gradients(model)
    state.optimizer.step()
    take_back(model, kept)
    assert all(torch.equal(now, then) for now, then in zip(model.state_dict().values(), after.values(), strict=True))


def test_a_fresh_adapter_changes_nothing_and_published_weights_are_kept_in_two_bytes() -> None:
    model = Transformer(MODEL)
    model.initialise(torch.Generator().manual_seed(0))
    model.embedding.weight.data = model.embedding.weight.data.bfloat16().float()
    for layer in model.layers:
        for parameter in layer.parameters():
            parameter.data = parameter.data.bfloat16().float()
    before = copy.deepcopy(model.state_dict())
    adapt(model, LoRAConfig(rank=2), seed=0)
    merge(model)
    assert all(torch.equal(now, before[name]) for name, now in model.state_dict().items())
    assert {adapter.base.dtype for _, adapter in adapters(model)} == {torch.bfloat16}
    assert {adapter.base.dtype for _, adapter in adapters(adapted())} == {torch.float32}


def test_who_has_an_adapter() -> None:
    model = adapted(rank=5)
    names = {id(layer): name for name, layer in model.named_modules()}
    found = [names[id(layer)].removeprefix("layers.") for layer, _ in adapters(model)]
    attention = ["q_a_proj", "q_b_proj", "kv_a_proj", "o_proj"]
    assert found == [
        *[f"0.attention.{name}" for name in attention],
        "0.feed_forward.gate_up",
        "0.feed_forward.down",
        *[f"1.attention.{name}" for name in attention],
        "1.feed_forward.shared.gate_up",
        "1.feed_forward.shared.down",
    ]
    numbers = sum(tensor.numel() for tensor in trained_parameters(model))
    assert adapted_share(model) == numbers / sum(parameter.numel() for parameter in model.parameters()) < 0.4


def test_ranks_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match=r"lora\.rank=-1 is negative"):
        LoRAConfig(rank=-1)
    with pytest.raises(ValueError, match=r"lora\.rank=64 is not below the widest layer's 24"):
        adapt(Transformer(MODEL), LoRAConfig(rank=64), seed=0)
