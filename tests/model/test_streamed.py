"""The model laid out for few tokens says what the model says."""

import copy
from dataclasses import replace

import pytest
import torch

from fathom.config import AttentionConfig, ModelConfig, MoEConfig, RopeConfig
from fathom.model import CacheSlots, LatentCache, Streamed, Transformer, streamed_layers, streams

pytestmark = pytest.mark.skipif("fbgemm" not in torch.backends.quantized.supported_engines, reason="needs fbgemm")

V3 = ModelConfig(
    vocab_size=80,
    hidden_size=24,
    intermediate_size=40,
    num_hidden_layers=3,
    initializer_range=0.25,
    attention=AttentionConfig(
        num_attention_heads=3,
        num_key_value_heads=3,
        q_lora_rank=12,
        kv_lora_rank=16,
        qk_nope_head_dim=10,
        qk_rope_head_dim=6,
        v_head_dim=14,
    ),
    moe=MoEConfig(
        n_routed_experts=8,
        num_experts_per_tok=3,
        n_shared_experts=2,
        moe_intermediate_size=16,
        first_k_dense_replace=1,
        n_group=4,
        topk_group=2,
        routed_scaling_factor=2.5,
    ),
)
V2 = replace(
    V3,
    model_type="deepseek_v2",
    tie_word_embeddings=True,
    attention=replace(V3.attention, q_lora_rank=None),
    rope=RopeConfig(scaling="yarn", factor=4.0, mscale=0.7, mscale_all_dim=0.5, original_max_position_embeddings=64),
    moe=replace(
        V3.moe,
        n_shared_experts=0,
        scoring_func="softmax",
        topk_method="greedy",
        norm_topk_prob=False,
        n_group=1,
        topk_group=1,
    ),
)


def build(config: ModelConfig) -> Transformer:
    model = Transformer(config)
    model.initialise(torch.Generator().manual_seed(2))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5, generator=torch.Generator().manual_seed(len(name)))
        for name, buffer in model.named_buffers():
            if "selection_bias" in name:
                buffer.uniform_(-0.3, 0.3, generator=torch.Generator().manual_seed(4))
    return model


def states(model: Transformer, reader: Transformer | Streamed, rows: int, times: tuple[int, ...]) -> list[torch.Tensor]:
    """What `reader` says of tokens read a few at a time behind those that the model reads, its drafts' states too."""
    tokens = torch.randint(model.config.vocab_size, (rows, 4 + sum(times)), generator=torch.Generator().manual_seed(7))
    places = torch.arange(tokens.shape[1]).expand_as(tokens)
    cache = LatentCache(model.config, tokens.shape[0], tokens.shape[1])
    found, first = list[torch.Tensor](), 4

    def pass_(first: int, last: int, fresh: bool) -> None:
        slots = CacheSlots.at(cache, 0, places[:, first:last], last, fresh)
        through = model if fresh else reader
        hidden = through(tokens[:, first:last], slots=slots)
        slots = CacheSlots.at(cache, 0, places[:, first:last], last, fresh)
        further = through.predict_further(0, hidden, tokens[:, first:last].roll(1, 1), slots=slots)
        found.extend((hidden, further, reader.logits(hidden.flatten(0, 1))))

    pass_(0, first, fresh=True)
    for time in times:
        pass_(first, first + time, fresh=False)
        first += time
    return [*found, *cache.layers]


@pytest.mark.parametrize("config", [V3, V2], ids=["v3", "v2"])
@pytest.mark.parametrize("rows", [1, 3, 20])
@pytest.mark.parametrize("folded", [1 << 17, -(1 << 40)], ids=["folded", "apart"])
def test_streamed_is_the_model(config: ModelConfig, rows: int, folded: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streamed_layers, "FOLDED", folded)
    model = build(config)
    with torch.inference_mode():
        expected = states(model, model, rows, (1, 2, 1, 3))
        found = states(model, Streamed(model, native=False), rows, (1, 2, 1, 3))
        for ours, theirs in zip(found, expected, strict=True):
            assert (ours - theirs).abs().max() < 2e-5 * theirs.abs().max()


def test_int8_is_near_and_not_the_same() -> None:
    model = build(V3)
    with torch.inference_mode():
        exact = states(model, model, 2, (1, 1))[-6]
        found = states(model, Streamed(model, int8=True), 2, (1, 1))[-6]
    error = (found - exact).norm() / exact.norm()
    assert 1e-4 < error < 0.1


@pytest.mark.parametrize("way", ["step", "load", "assign"])
def test_changed_weights_are_seen(way: str) -> None:
    model, other = build(V3), build(V3)
    reader = Streamed(model)
    with torch.inference_mode():
        before = states(model, reader, 1, (1,))[3]
    if way == "step":
        optimizer = torch.optim.AdamW(other.parameters(), lr=0.01, fused=True)
        for parameter in other.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=True)
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
    else:
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.add_(0.01)
        model.load_state_dict(copy.deepcopy(other.state_dict()), assign=way == "assign")
    reader.weights_may_differ()
    with torch.inference_mode():
        after, expected = states(model, reader, 1, (1,))[3], states(other, other, 1, (1,))[3]
    assert (after - expected).abs().max() < 2e-5 * expected.abs().max()
    assert (after - before).abs().max() > 1e-3


def test_which_models_are_streamed() -> None:
    model = build(V3)
    assert streams(model)
    assert not streams(build(V3).double())
    assert not streams(build(replace(V3, attention=AttentionConfig(kind="gqa"))))
    assert not streams(model.to("meta"))
