"""docs/paper.md as a ledger of claims: every experiment has a row, and what rows name exists."""

from pathlib import Path

import pytest

from fathom import cli
from fathom.unlocks import catalogue, ledger

ROOT = Path(__file__).parents[2]
ROWS = ledger.rows((ROOT / "docs" / "paper.md").read_text(encoding="utf-8"))


def test_every_experiment_has_a_row() -> None:
    assert set(catalogue.NAMES) <= set(ROWS)
    for name in catalogue.NAMES:
        assert f"fathom/unlocks/{name.replace('-', '_')}.py" in [path for path, _ in ledger.references(ROWS[name].file)]


@pytest.mark.parametrize("row", ROWS.values(), ids=lambda row: row.name)
def test_what_a_row_names_exists(row: ledger.Row) -> None:
    code, tests = ledger.references(row.file), ledger.references(row.test)
    assert code and tests and row.claim and row.measured
    assert all(path.startswith("fathom/") for path, _ in code) and all(path.startswith("tests/") for path, _ in tests)
    assert row.paper.startswith("[") and "(https://arxiv.org/abs/" in row.paper
    for path, name in code + tests:
        source = (ROOT / path).read_text(encoding="utf-8")
        assert not name or ledger.line_of(source, name), f"{path}:{name}"


def test_lines_are_those_of_the_definitions() -> None:
    source = "A = 1\n\nclass B:\n    c: int = 2\n\n    def d(self): ...\n"
    lines = {name: ledger.line_of(source, name) for name in ("A", "B", "B.c", "B.d", "c", "B.A")}
    assert lines == {"A": 1, "B": 3, "B.c": 4, "B.d": 6, "c": None, "B.A": None}


def test_the_verb_prints_a_row_with_its_links(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["explain", "mtp-speculation"]) == 0
    said = capsys.readouterr().out
    assert "V3 5.4.3 (https://arxiv.org/abs/2412.19437)" in said and "`" not in said
    path, _, line = next(word for word in said.split() if "fathom/infer/speculate.py:" in word).rpartition(":")
    assert Path(path).read_text().splitlines()[int(line) - 1].startswith("def speculate_greedy(")
    assert "docs/results/2026-11-23-laptop-copying.md" in said


def test_an_unknown_claim_gets_the_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["explain", "kosten"]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert said.endswith(", ".join(ROWS)) and "'kosten'" in said
