"""Layouts tried out on processes of this machine."""

import json
from dataclasses import replace

import pytest
import torch

from fathom.bench.simulate import Run, Share, Simulated, simulate
from fathom.cli import main
from fathom.config import ParallelConfig
from fathom.plan.notation import parse_layout


@pytest.mark.ranks
def test_a_pipeline_is_compared_drawn_and_counted(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", "--ranks", "2", "--layout", "pp2", "--schedule", "zbv"]) == 0
    out = capsys.readouterr().out
    *text, line = out.splitlines()
    figures = json.loads(line)
    assert figures["equal"] and figures["biases_equal"] and figures["gradient_error"] < 1e-5
    state = 16 * 32 * 4  # one row's states
    assert [sent["states"] for sent in figures["sent_bytes"]] == [6 * state] * 2  # six micro-batches, one border each
    assert 0 < figures["idle_played_out"] < 1 and 0 < figures["idle"] < 1
    assert sum(row.startswith("zbv, 2 ranks, 6 micro-batches") for row in text) == 2
    assert text[0].startswith("rank 0: layers 0, 3;") and text[1].startswith("rank 1: layers 1, 2;")


@pytest.mark.ranks
@pytest.mark.slow
@pytest.mark.parametrize(
    ("word", "processes", "options"),
    [("ep2fs2", 2, {}), ("pp4ep2dp1", 8, {}), ("pp2ep2dp2", 8, {"schedule": "dualpipev", "recompute": "selective"})],
)
def test_layouts_train_what_one_process_trains(word: str, processes: int, options: dict[str, str]) -> None:
    found = simulate(parse_layout(word, **options), processes)
    assert found.equal
    assert (found.found.measured is not None) == ("pp" in word)


def test_a_layout_that_cannot_be_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", "--ranks", "6", "--layout", "pp4ep2dp1"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("fathom: the layout takes 8 devices") and error.count("\n") == 1


def test_a_difference_is_said() -> None:
    run = Run([1.0], {}, {"router": torch.zeros(2)}, [Share([0, 1], 10, {"states": 4096})])
    same = Simulated(ParallelConfig(), run, 1e-7, 1e-7, True)
    assert same.equal and "sent a step: states 4,096 B" in same.text()
    for change in ({"loss_error": 1e-4}, {"gradient_error": 1e-4}, {"biases_equal": False}):
        assert not replace(same, **change).equal
    assert "DIFFERENT" in replace(same, biases_equal=False).text()
