"""Every experiment: its variants differ in what the card says, and a seed gives the same figures again."""

import json
from pathlib import Path

import pytest
import torch

from fathom import cli
from fathom.unlocks import catalogue
from fathom.unlocks.experiment import Context, Figures, hash_of

PROCESSES = ("pipeline",)  # cards that start some
BY_KIND = [pytest.param(name, marks=pytest.mark.ranks) if name in PROCESSES else name for name in catalogue.NAMES]


@pytest.mark.parametrize("name", catalogue.NAMES)
def test_variants_differ_only_in_what_the_card_says(name: str) -> None:
    experiment = catalogue.find(name)
    for size in ("toy", "cpu", "gpu"):
        fields = [set(differing) for differing in experiment.differences(size).values()]
        assert fields and all(fields)
        assert set().union(*fields) == experiment.changes


@pytest.mark.parametrize("name", BY_KIND)
def test_a_seed_gives_the_same_figures_again(name: str, tmp_path: Path) -> None:
    def figures(part: str) -> Figures:
        found = catalogue.find(name).measure(Context(torch.device("cpu"), "toy", tmp_path / part), 1)
        return {key: value for key, value in found.items() if key != "timed"}

    assert hash_of(figures("a")) == hash_of(figures("b"))


def test_the_verb_lists_runs_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--size", "toy", "--device", "cpu", "--out", str(tmp_path)]
    assert cli.main(["unlocks", "cost", *where]) == 0
    assert "verdict     supported" in capsys.readouterr().out
    assert cli.main(["unlocks", *where]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in listed if line.startswith("  cost")] == ["done"]
    assert [line.split()[0] for line in listed[2:]] == list(catalogue.NAMES)
    assert cli.main(["unlocks", "cost", "--json", *where]) == 0
    (card,) = json.loads(capsys.readouterr().out)
    kept = json.loads((tmp_path / "unlocks.json").read_text())["cards"]
    assert card in kept and card["result"]["figures"]["v3"] == 5_576_000
    page = (tmp_path / "unlocks.html").read_text()
    assert len(page) < 3e6 and "http://" not in page.replace("http://www.w3.org", "") and "<svg" in page


def test_mistakes_are_explained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["unlocks", "fp8-acumulation", "--out", str(tmp_path)]) == 2
    assert "did you mean fp8-accumulation?" in capsys.readouterr().err
    assert cli.main(["unlocks", "all", "--minutes", "0", "--out", str(tmp_path)]) == 2
    assert "--minutes 0 is no time" in capsys.readouterr().err
