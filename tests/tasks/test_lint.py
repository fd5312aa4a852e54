"""`fathom reward lint`: clean on a careful check, loud on careless ones."""

from pathlib import Path

import pytest

from fathom.cli import main
from fathom.config import TaskConfig
from fathom.tasks import lint as room
from fathom.tasks.attacks import BLIND, around
from fathom.tasks.lint import Finding, lint
from fathom.tasks.sandbox import can_isolate

EXAMPLE = Path(__file__).parents[2] / "recipes" / "sums.py"
ISOLATION = "require" if can_isolate() else "limits"
FEW = (
    "nothing", "a tower of powers", "an exit", "equal to all", "every small number", "a file", "broken surrogates"
)  # fmt: skip


def config(file: Path, seconds: float = 1.5) -> TaskConfig:
    return TaskConfig(kind="custom", file=str(file), check_seconds=seconds, isolation=ISOLATION)


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """A handful of the attacks: each takes a process."""
    monkeypatch.setattr(room, "BLIND", {name: BLIND[name] for name in FEW})


def careless(path: Path, body: str) -> Path:
    file = path / "careless.py"
    file.write_text(f"def prompt(rng):\n    a = rng.randint(10, 99)\n    return f'{{a}}+1', a + 1\n\n{body}\n")
    return file


def test_a_check_that_evaluates_is_found(few: None, tmp_path: Path) -> None:
    file = careless(tmp_path, "def check(answer, truth): return eval(answer) == truth")
    found = {finding.attack: finding.fault for finding in lint(config(file)).findings}
    assert found["equal to all"] == "paid" and found["the question said again"] == "paid"
    assert found["a tower of powers"] == "timeout"
    assert found["nothing"] == found["an exit"] == "crash"
    assert not Path("/tmp/fathom-was-here").exists() or ISOLATION == "limits"


@pytest.mark.slow
def test_a_check_that_searches_is_found(few: None, tmp_path: Path) -> None:
    file = careless(tmp_path, "def check(answer, truth): return str(truth) in answer")
    found = {finding.attack: finding.fault for finding in lint(config(file)).findings}
    assert found["every small number"] == found["two answers"] == found["a sentence"] == "paid"


@pytest.mark.slow
def test_the_verb_says_what_it_found_and_exits_with_2(
    few: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = careless(tmp_path, "def check(answer, truth): return float(answer) == truth")
    assert main(["reward", "lint", str(file), "--isolation", ISOLATION]) == 2
    said = capsys.readouterr()
    assert "crash   nothing: the check ended with code 1: ValueError" in said.out
    assert "can be cheated or stopped; mend check" in said.err
    assert main(["reward", "lint", str(tmp_path / "no.py")]) == 2
    assert "there is no file" in capsys.readouterr().err


def test_a_careful_check_has_no_finding(few: None) -> None:
    found = lint(config(EXAMPLE, seconds=30))
    assert found.findings == [] and found.tried == len(FEW) + len(around("", "1"))
    assert str(found) == f"{found.tried} attacks, none was paid, none broke the check"
    assert "paid    x: 1 for" in str(Finding("x", "paid", "1 for 'y'"))


@pytest.mark.slow
def test_the_example_withstands_every_attack() -> None:
    found = lint(config(EXAMPLE, seconds=30))
    assert found.findings == [] and found.tried > 50
