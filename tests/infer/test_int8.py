"""Decoding in int8: only when asked, its error shown, refused where it cannot be."""

import logging

import pytest
import torch

from fathom.config import SamplingConfig
from fathom.infer import Engine, Request
from fathom.infer.int8 import compare_int8
from fathom.infer.rounding import RoundingReport
from fathom.model import Transformer, streams

x86 = pytest.mark.skipif("fbgemm" not in torch.backends.quantized.supported_engines, reason="needs fbgemm")
GREEDY = SamplingConfig(temperature=0.0, max_tokens=20)


@x86
def test_the_error_is_measured_and_shown(latent: Transformer, caplog: pytest.LogCaptureFixture) -> None:
    report = compare_int8(latent)
    assert 1e-4 < report.error < 0.1
    assert 0.8 < report.agreement <= 1
    assert report.places == 2 * 63
    with caplog.at_level(logging.INFO, logger="fathom"):
        Engine(latent, rows=1)
        assert not caplog.records
        Engine(latent, rows=1, int8=True)
    assert str(report) in caplog.text


def test_the_report_says_what_it_measured() -> None:
    said = str(RoundingReport(error=0.01234, agreement=0.975, places=126))
    assert "1.23%" in said and "97.5%" in said and "126 places" in said


@x86
def test_int8_decodes_from_bytes(latent: Transformer) -> None:
    request = Request([3, 1, 4, 1, 5], GREEDY, seed=0, stop_ids=frozenset())
    plain, rounded = Engine(latent, 1).generate([request])[0][0], Engine(latent, 1, int8=True).generate([request])[0][0]
    pairs = zip(plain.tokens, plain.logprobs, rounded.tokens, rounded.logprobs, strict=True)
    gaps = [abs(exact - found) for token, exact, other, found in pairs if token == other]
    assert 0 < max(gaps) < 0.5


def test_models_without_latents_are_refused(model: Transformer) -> None:
    if model.config.attention.kind == "mla":
        model = Transformer(model.config).bfloat16()
    with pytest.raises(ValueError, match="int8 needs latent attention in float32 on an x86 CPU, and this model has"):
        Engine(model, rows=1, int8=True)


@x86
def test_an_engine_sees_weights_that_change_in_place(latent: Transformer) -> None:
    """As an optimizer changes them, fused and between two calls."""
    model = Transformer(latent.config)
    model.load_state_dict(latent.state_dict())
    assert streams(model)
    engine = Engine(model, rows=2)
    request = Request([3, 1, 4], GREEDY, seed=0, stop_ids=frozenset())
    first = engine.generate([request])[0][0]
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
    torch.optim.AdamW(model.parameters(), lr=0.05, fused=True).step()
    second, fresh = engine.generate([request])[0][0], Engine(model, rows=2).generate([request])[0][0]
    assert (second.tokens, second.logprobs) == (fresh.tokens, fresh.logprobs)
    assert first.logprobs != second.logprobs
