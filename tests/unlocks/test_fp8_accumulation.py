"""The errors are those that were measured on the hardware."""

import pytest
import torch

from fathom.unlocks import fp8_accumulation


def test_the_errors_are_the_published_ones() -> None:
    errors, same = fp8_accumulation.errors_at(4096, 96, 0, torch.device("cpu"))
    without, promoted = errors.values()
    # one H200, 2048 x 2048 outputs: 1.3e-3 and 1.3e-4; -6.6 % and -0.05 %
    assert without.frobenius == pytest.approx(1.3e-3, rel=0.06)
    assert promoted.frobenius == pytest.approx(1.3e-4, rel=0.06)
    assert without.bias == pytest.approx(-0.066, rel=0.03)
    assert promoted.bias == pytest.approx(-0.0005, rel=0.06)
    assert 0.008 < without.largest < 0.025 and promoted.largest < 0.001
    assert same == {}


def test_errors_are_measured_against_float64() -> None:
    ones = torch.ones(2, 2)
    errors = fp8_accumulation.measure(torch.tensor([[2.0, 2.0], [2.0, 1.0]]), [ones, ones], ones, [ones, ones])
    assert errors == fp8_accumulation.Errors(largest=0.5, frobenius=0.25, bias=-0.5)


def test_the_same_bits_are_counted() -> None:
    model, real = torch.tensor([1.0, 2.0]), torch.tensor([1.0, 3.0])
    outputs = {"model a": model, "model b": real, "real a": real, "real b": real}
    assert fp8_accumulation.agreements(outputs) == {"real a": 0.5, "real b": 1.0}
