"""The first card: its figures are those that were measured on the hardware, and it says so in words."""

import json

import pytest
import torch

from fathom import cli
from fathom.unlocks import fp8_accumulation
from fathom.unlocks.card import Card

CPU = torch.device("cpu")


def test_the_errors_are_the_published_ones() -> None:
    card = fp8_accumulation.main(CPU, side=96)
    without, promoted = card.figures["errors"].values()
    # one H200, 2048 x 2048 outputs: 1.3e-3 and 1.3e-4; -6.6 % and -0.05 %
    assert without["frobenius"] == pytest.approx(1.3e-3, rel=0.06)
    assert promoted["frobenius"] == pytest.approx(1.3e-4, rel=0.06)
    assert without["bias"] == pytest.approx(-0.066, rel=0.03)
    assert promoted["bias"] == pytest.approx(-0.0005, rel=0.06)
    assert 0.008 < without["largest"] < 0.025 and promoted["largest"] < 0.001
    assert card.figures["same_as_hardware"] == {}


def test_errors_are_measured_against_float64() -> None:
    ones = torch.ones(2, 2)
    errors = fp8_accumulation.measure(torch.tensor([[2.0, 2.0], [2.0, 1.0]]), [ones, ones], ones, [ones, ones])
    assert errors == fp8_accumulation.Errors(largest=0.5, frobenius=0.25, bias=-0.5)


def test_the_same_bits_are_counted() -> None:
    model, real = torch.tensor([1.0, 2.0]), torch.tensor([1.0, 3.0])
    outputs = {"model a": model, "model b": real, "real a": real, "real b": real}
    assert fp8_accumulation.agreements(outputs) == {"real a": 0.5, "real b": 1.0}


def test_a_card_lines_its_columns_up() -> None:
    text = Card("name", "c", "s", "p", ("way", "x"), [("long name", "1"), ("b", "22")], "So it is.").text()
    lines = text.splitlines()
    assert lines[6:10] == ["  way         x", "  -------------", "  long name   1", "  b          22"]
    assert lines[-1] == "So it is."


def test_the_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["unlocks", "fp8-accumulation", "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "fp8-accumulation: 256 x 256 outputs, inner width 4096"
    assert any(line.startswith("  modelled, not promoted") for line in lines)
    assert json.loads(lines[-1])["width"] == 4096


def test_an_unknown_card_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["unlocks", "fp4"])
    assert stop.value.code == 2
    assert "fp8-accumulation" in capsys.readouterr().err
