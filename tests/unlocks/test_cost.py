"""The bill of a reader's run beside the paper's."""

import json
from pathlib import Path

import pytest

from fathom import cli
from fathom.runs import Run


def measured(capsys: pytest.CaptureFixture[str], out: Path, *words: str) -> dict[str, str]:
    """The rows of the card."""
    where = ["--size", "toy", "--device", "cpu", "--out", str(out)]
    assert cli.main(["unlocks", "cost", "--json", *where, *words]) == 0
    (card,) = json.loads(capsys.readouterr().out)
    return dict(card["result"]["rows"])


def test_hours_and_price_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, out = Run(tmp_path / "mine"), tmp_path / "out"
    run.append_ledger("pretrain", seconds=5400.0, dollars=3.0)
    run.append_ledger("grpo", seconds=1800.0, dollars=1.0)
    run.append_ledger("evaluation", score=1)  # of which nothing was billed
    rows = measured(capsys, out, "--run", str(run.path))
    assert rows["your run: pretrain"] == "3.0000" and rows["your run: grpo"] == "1.0000"
    assert rows["your run, sum (2.000 hours at $2.00)"] == "4.0000"
    assert rows["V3, sum"] == "5,576,000"
    assert not any(name.startswith("your run") for name in measured(capsys, out))
    # a run that went on is billed anew
    run.append_ledger("eval", seconds=3600.0, dollars=2.0)
    assert measured(capsys, out, "--run", str(run.path))["your run, sum (3.000 hours at $2.00)"] == "6.0000"


def test_a_run_without_a_bill_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["unlocks", "cost", "--run", str(tmp_path / "absent"), "--out", str(tmp_path), "--device", "cpu"]
    assert cli.main(words) == 2
    assert "has no ledger of a finished stage" in capsys.readouterr().err
