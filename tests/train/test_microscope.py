"""The microscope: gradients compared as they are, drift cured by the least that cures it and kept over a resume."""

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from fathom.config import TrainConfig
from fathom.kernels.fp8 import TensorCount
from fathom.model import Transformer
from fathom.model.precision import fp8_layers, fp8_modules, use_fp8, watched, without_fp8
from fathom.parallel.world import World
from fathom.presets import preset
from fathom.runs import Run
from fathom.text.packing import Batch
from fathom.train.loop import Place, train_language
from fathom.train.microscope import Finding, Limits, examine, summarise

WORLD = World(0, 1, torch.device("cpu"))
MODEL = replace(preset("laptop").model, num_hidden_layers=2)
TOKENS = torch.randint(MODEL.vocab_size, (2, 17), generator=torch.Generator().manual_seed(1))
STRICT = Limits(cosine=0.9999999, norm=1.0000001)


def build() -> Transformer:
    model = Transformer(MODEL)
    model.initialise(torch.Generator().manual_seed(0))
    use_fp8(model)
    return model


def loss(model: Transformer) -> Tensor:
    logits = model.logits(model(TOKENS[:, :-1]))
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), TOKENS[:, 1:].flatten())


def test_gradients_are_compared_as_they_are() -> None:
    model = build()
    findings = {f.layer: f for f in examine(model, lambda: loss(model), WORLD, Limits(cosine=0.5, norm=2))}
    assert {name for name, _ in fp8_modules(model)} == set(findings)
    name = "layers.1.attention.o_proj"
    weight = model.layers[1].attention.o_proj.weight
    low = torch.autograd.grad(loss(model), weight)[0].flatten()
    with without_fp8(model):
        plain = torch.autograd.grad(loss(model), weight)[0].flatten()
    assert findings[name].cosine == pytest.approx(float(torch.cosine_similarity(low, plain, dim=0)), abs=1e-6)
    assert findings[name].norm_ratio == pytest.approx(float(low.norm() / plain.norm()), abs=1e-6)
    assert 0.9 < findings[name].cosine < 0.99999
    assert findings[name].counts["input"].numbers == 2 * 16 * weight.shape[1]
    assert all(finding.fallback is None for finding in findings.values())
    assert all(layer.watch is None for layer in fp8_layers(model))
    assert all(parameter.grad is None for parameter in model.parameters())


def test_what_drifts_falls_back_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    model = build()
    with caplog.at_level(logging.WARNING):
        findings = examine(model, lambda: loss(model), WORLD, STRICT)
    drifted = [f for f in findings if f.fallback]
    assert drifted and len(caplog.records) == len(drifted)
    assert "goes on without FP8" in caplog.text
    whole = {f.layer for f in drifted if f.fallback == "layer"}
    left = {layer.name: layer for layer in fp8_layers(model)}
    assert not whole & set(left)
    assert all(left[f.layer].fp8_wgrad == (f.fallback is None) for f in findings if f.layer not in whole)


def test_only_the_weights_gradient_falls_back_where_that_suffices() -> None:
    """The last layer's down projection: with its own wgrad exact, little else separates it from the plain one."""
    model = build()
    before = {f.layer: f.cosine for f in examine(model, lambda: loss(model), WORLD, Limits(cosine=0.1, norm=9))}
    for _, module in fp8_modules(model):
        assert module.fp8 is not None
        module.fp8.fp8_wgrad = False
    after = {f.layer: f.cosine for f in examine(model, lambda: loss(model), WORLD, Limits(cosine=0.1, norm=9))}
    gained = {name: after[name] - before[name] for name in before}
    best = max(gained, key=gained.__getitem__)
    assert gained[best] > 0
    model = build()
    between = (before[best] + after[best]) / 2
    findings = examine(model, lambda: loss(model), WORLD, Limits(cosine=between, norm=9))
    assert {f.layer: f.fallback for f in findings}[best] == "wgrad"


def test_the_summary_keeps_the_worst() -> None:
    counts = {"input": TensorCount(100, 3, 1), "weight": TensorCount(10, 0, 5)}
    findings = [Finding("a", 0.99, 1.01, counts, None), Finding("b", 0.8, 0.9, {}, "wgrad")]
    assert summarise(findings) == {
        "fp8_cosine": 0.8,
        "fp8_norm_ratio": 0.9,
        "fp8_underflow": 0.03,
        "fp8_saturation": 0.5,
        "fp8_fallbacks": 1,
    }


def test_counts_add_up_over_passes() -> None:
    model = build()
    with watched(model) as counts:
        loss(model)
        loss(model)
    assert counts["layers.0.attention.kv_a_proj"]["input"].numbers == 2 * 2 * 16 * MODEL.hidden_size


def batch_of(step: int, rows: int) -> Batch:
    tokens = np.random.default_rng(step).integers(0, MODEL.vocab_size, (rows, 17))
    places = np.broadcast_to(np.arange(16), (rows, 16))
    return Batch(tokens[:, :-1], tokens[:, 1:], np.ones((rows, 16), np.float32), places, np.zeros((rows, 16), np.int64))


def test_a_run_looks_when_it_is_due_and_remembers_what_fell_back(tmp_path: Path) -> None:
    config = TrainConfig(
        steps=4,
        batch_rows=2,
        micro_batch_rows=2,
        seq_len=16,
        save_every=2,
        validate_every=0,
        precision="fp8",
        fp8_check_every=2,
        fp8_least_cosine=1.0,
    )
    place = Place(Run(tmp_path), "pretrain", WORLD)
    model = Transformer(MODEL)
    model.initialise(torch.Generator().manual_seed(0))
    state = train_language(place, replace(config, steps=2), model, batch_of)
    lines = Run(tmp_path).read_metrics("pretrain")
    assert [line.get("fp8_fallbacks") is not None for line in lines] == [True, False]
    assert state.fallbacks
    again = Transformer(MODEL)
    resumed = train_language(place, config, again, batch_of)
    assert state.fallbacks.items() <= resumed.fallbacks.items()
    left = {layer.name: layer.fp8_wgrad for layer in fp8_layers(again)}
    for name, fallback in resumed.fallbacks.items():
        assert left.get(name) is (None if fallback == "layer" else False)
