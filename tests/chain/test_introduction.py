"""What chat claims of a model before the first question."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from fathom.chain.introduction import introduce, measured_score
from fathom.chain.stage import fingerprint
from fathom.chain.stages import evaluation_inputs, last_line
from fathom.config import Config
from fathom.config.load import load_config
from fathom.runs import Run

SCORE = {"sampled": 0.8125, "sampled_low": 0.79, "sampled_high": 0.835, "greedy": 0.864, "problems": 500}


@pytest.fixture
def run(trained: Run, tmp_path: Path) -> Run:
    """A copy to book evaluations in."""
    shutil.copytree(trained.path, tmp_path / "run")
    return Run(tmp_path / "run")


def book(run: Run, config: Config, weights: str, name: str = "eval_after", **score: Any) -> None:
    key = fingerprint({"stage": name, **evaluation_inputs(config, weights)})
    run.append_ledger(name, key=key, score={**SCORE, **score})


def test_an_unevaluated_model_claims_no_accuracy(trained: Run) -> None:
    said = introduce(trained)
    assert "reinforcement learning" in said
    assert "target of at most 60 from 3 numbers of at most 20" in said
    assert "was not measured" in said
    assert "%" not in said


def test_the_accuracy_is_that_of_the_ledger(run: Run) -> None:
    book(run, run.config, last_line(run, "grpo")["weights_hash"])
    said = introduce(run).replace("\N{NO-BREAK SPACE}", " ")
    assert "Of 500 problems held out of its training it solves 81.2 % when answers are sampled" in said
    assert "79.0 % to 83.5 %" in said
    assert "86.4 % when each token is the likeliest one" in said


def test_scores_of_other_weights_and_tasks_are_not_claimed(run: Run) -> None:
    weights = last_line(run, "grpo")["weights_hash"]
    book(run, run.config, "other weights")
    book(run, load_config(run.config, None, {"task.max_number": 9}), weights, "eval")
    assert measured_score(run, "grpo") is None
    book(run, run.config, weights, "eval", sampled=0.5)
    book(run, run.config, "other weights")
    assert measured_score(run, "grpo") == {**SCORE, "sampled": 0.5}


def test_a_pretrained_model_does_not_claim_the_task(run: Run) -> None:
    (run.path / "ledger.jsonl").write_text('{"stage": "pretrain", "key": "", "weights_hash": "w"}\n')
    assert "was not yet trained on its task" in introduce(run)
