"""Which layers compute in FP8, and training through the whole model."""

import logging

import pytest
import torch

from fathom.config import ModelConfig
from fathom.model import RoutingTrace, Transformer
from fathom.model.precision import fp8_layers, has_fp8_units, use_fp8, where_not_finite, without_fp8
from fathom.presets import preset

CONFIG: ModelConfig = preset("laptop").model


def build() -> Transformer:
    model = Transformer(CONFIG)
    model.initialise(torch.Generator().manual_seed(0))
    return model


def test_head_embedding_router_and_norms_keep_their_precision() -> None:
    model = build()
    assert use_fp8(model)
    names = {layer.name for layer in fp8_layers(model)}
    assert "head" not in names and not any("router" in name or "norm" in name for name in names)
    for layer in range(CONFIG.num_hidden_layers):
        kind = model.layers[layer].attention
        for name, _ in kind.named_parameters():
            if "norm" not in name:
                assert f"layers.{layer}.attention.{name.removesuffix('.weight')}" in names
        assert f"layers.{layer}.feed_forward" in names or f"layers.{layer}.feed_forward.down" in names
    kept = {layer.name: layer.kept for layer in fp8_layers(model)}
    assert kept["layers.0.attention.o_proj"] == "bfloat16" and kept["layers.0.attention.kv_b_proj"] == "e4m3"


def test_hidden_states_and_gradients_stay_near_those_without_fp8() -> None:
    model = build()
    tokens = torch.randint(CONFIG.vocab_size, (2, 24), generator=torch.Generator().manual_seed(1))

    def gradients() -> list[torch.Tensor]:
        model.zero_grad()
        hidden = model(tokens, trace=RoutingTrace())
        model.logits(hidden).log_softmax(-1)[..., 0].mean().backward()
        return [hidden.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]

    plain = gradients()
    use_fp8(model)
    low = gradients()
    with without_fp8(model):
        again = gradients()
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))
    flat_plain, flat_low = (torch.cat([g.flatten() for g in side[1:]]) for side in (plain, low))
    assert 0.97 < torch.cosine_similarity(flat_plain, flat_low, dim=0) < 0.999999
    assert 1e-4 < (low[0] - plain[0]).norm() / plain[0].norm() < 0.1


@pytest.mark.parametrize(("capability", "has"), [((8, 0), False), ((8, 9), False), ((9, 0), True), ((10, 0), False)])
def test_only_hopper_has_the_units(capability: tuple[int, int], has: bool) -> None:
    assert has_fp8_units(capability) == has


def test_a_gpu_without_units_says_so_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    model = build()
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100")
    monkeypatch.setattr("fathom.model.precision.device_of", lambda model: torch.device("cuda"))
    with caplog.at_level(logging.WARNING):
        assert not use_fp8(model)
    assert [r.getMessage() for r in caplog.records] == [
        "NVIDIA A100 cannot multiply FP8 as Hopper does: training runs without it, in bfloat16"
    ]
    assert not list(fp8_layers(model))


def test_the_first_tensor_that_was_not_finite_each_way_is_named() -> None:
    model = build()
    use_fp8(model)
    layers = list(fp8_layers(model))
    assert where_not_finite(model) == ""
    bad, good = torch.tensor([[1.0, float("nan")]]), torch.ones(1, 2)
    for number, layer in enumerate(layers):  # as unwatched layers on a GPU leave them
        layer._scales.update({"input": bad if number >= 2 else good, "output's gradient": bad if number <= 4 else good})
    assert where_not_finite(model) == f"the input of {layers[2].name} and the output's gradient of {layers[4].name}"
