"""Stages one at a time: what each verb refuses, continues and leaves."""

from dataclasses import replace
from pathlib import Path

import pytest

from fathom.chain import verbs
from fathom.config import Config
from fathom.eval.exam import Exam
from fathom.runs import Run


@pytest.fixture(scope="module")
def quick(micro: Config) -> Config:
    """The chain with the shortest of cold starts."""
    return replace(micro, sft=replace(micro.sft, steps=3))


@pytest.fixture
def pretrained(quick: Config, tmp_path: Path) -> Run:
    run = Run(tmp_path / "mine")
    verbs.pretrain(quick, run, resume=False)
    return run


def test_the_verbs_in_order_are_the_chain(quick: Config, pretrained: Run, capsys: pytest.CaptureFixture[str]) -> None:
    verbs.sft(quick, pretrained, resume=False)
    assert verbs.newest_stage(pretrained) == "sft"
    verbs.evaluate(quick, pretrained, Exam())
    verbs.grpo(quick, pretrained, resume=False)
    assert verbs.newest_stage(pretrained) == "grpo"
    verbs.evaluate(quick, pretrained, Exam())
    wanted = ["tokenize", "pretrain", "sft", "eval_before", "control_random", "grpo", "eval_after"]
    assert [line["stage"] for line in pretrained.read_ledger()][: len(wanted)] == wanted
    assert pretrained.config == quick
    said = capsys.readouterr().out
    assert [line.split("  ")[0] for line in said.splitlines()[:2]] == ["sft", "evaluation"]
    assert "sampled (" in said and "loss " in said


def test_pretraining_tokenizes_what_is_not_tokenized_yet(pretrained: Run) -> None:
    assert [line["stage"] for line in pretrained.read_ledger()] == ["tokenize", "pretrain"]
    assert pretrained.tokenizer_path.exists()


def test_pretraining_refuses_text_that_was_prepared_otherwise(quick: Config, tmp_path: Path) -> None:
    run = Run(tmp_path)
    verbs.tokenize(quick, run)
    with pytest.raises(ValueError, match="tokenize with other settings"):
        verbs.pretrain(replace(quick, text=replace(quick.text, fim_rate=0.5)), run, resume=False)
    assert len(run.read_ledger()) == 1


def test_a_stage_that_has_begun_is_touched_only_with_resume(quick: Config, pretrained: Run) -> None:
    with pytest.raises(ValueError, match=r"pretrain up to step_000004; add --resume .* --out"):
        verbs.pretrain(quick, pretrained, resume=False)
    verbs.pretrain(quick, pretrained, resume=True)  # finished: nothing to do
    assert len(pretrained.read_ledger("pretrain")) == 1


def test_a_stage_does_not_go_on_with_other_settings(quick: Config, pretrained: Run) -> None:
    longer = replace(quick, pretrain=replace(quick.pretrain, steps=6))
    with pytest.raises(ValueError, match="other settings"):
        verbs.pretrain(longer, pretrained, resume=True)
    assert len(pretrained.read_metrics("pretrain")) == 4


def test_a_stage_out_of_turn_names_the_one_before(quick: Config, pretrained: Run, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="run `fathom sft` first"):
        verbs.grpo(quick, pretrained, resume=False)
    with pytest.raises(ValueError, match="run `fathom pretrain` first"):
        verbs.sft(quick, Run(tmp_path / "empty"), resume=False)
    with pytest.raises(ValueError, match="holds no trained model"):
        verbs.evaluate(quick, Run(tmp_path / "empty"), Exam())


def test_an_evaluation_with_other_settings_leaves_the_runs_config_alone(quick: Config, pretrained: Run) -> None:
    verbs.evaluate(replace(quick, eval=replace(quick.eval, problems=5)), pretrained, Exam())
    assert pretrained.config == quick
    assert pretrained.read_ledger("eval_before")[-1]["score"]["problems"] == 5


def test_a_run_that_is_being_written_is_left_to_its_writer(quick: Config, pretrained: Run) -> None:
    with pretrained.lock(), pytest.raises(RuntimeError, match="is being written by process"):
        verbs.sft(quick, pretrained, resume=False)
