"""Generation and chat from a run's directory, as the command line does them."""

import io
import shutil
import signal
import sys
from pathlib import Path

import pytest
import torch

from fathom.chain import talk
from fathom.chain.puzzle import read_problem
from fathom.checkpoint.state import save_checkpoint, weights_hash
from fathom.cli import main
from fathom.config import SamplingConfig
from fathom.config.load import load_config
from fathom.model import Transformer
from fathom.runs import Run
from fathom.tasks import build
from fathom.tasks.task import is_held_out

GREEDY = SamplingConfig(temperature=0.0, max_tokens=24)
REPLY = "<think>8+4=12,12-2=10</think><answer>8+4-2</answer>"


def talked(run: Run, lines: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """What a chat shows that reads `lines` from a pipe."""
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
    talk.chat(run, GREEDY)
    return capsys.readouterr().out


def test_generate_answers_in_order(trained: Run) -> None:
    assert list(talk.generate(trained, ["8,2,4:10", "3,9,5:11"], GREEDY)) == [REPLY, REPLY]


def test_generate_from_a_checkpoint_and_from_an_export(
    trained: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(trained.path), str(tmp_path / "hub")]) == 0
    for directory in (trained.path / "grpo" / "step_000001", tmp_path / "hub"):
        assert main(["generate", str(directory), "8,2,4:10", "--temperature", "0"]) == 0
        assert capsys.readouterr().out == REPLY + "\n"


def test_a_checkpoint_without_a_run_is_refused_in_one_sentence(
    trained: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = tmp_path / "model"
    shutil.copytree(trained.path / "grpo" / "step_000001", directory)
    assert main(["generate", str(directory), "8,2,4:10"]) == 2
    assert main(["chat", str(directory)]) == 2
    without_tokenizer, without_run = capsys.readouterr().err.splitlines()
    assert "model holds no tokenizer.json; put the one" in without_tokenizer
    assert "is a checkpoint without the records of a run" in without_run


def test_chat_shows_thinking_and_answer_and_checks_them(
    trained: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = talked(trained, "make 10 from 8 2 4\n3,9,5:11\n20,30,40:90\nhello\nexit\n1\n", monkeypatch, capsys)
    first, second, third, rest = said.split("> ")[1:5]
    assert first == ("make 10 from 8 2 4\n  thinking  8+4=12,12-2=10\n  answer    8+4-2\n  right: 8+4-2 = 10\n")
    assert "  wrong: 8+4-2 = 10, not 11; 3 is missing; 9 is missing; 5 is missing; 8 is not given" in second
    assert "never saw such numbers" in third
    assert "That is no problem of its task" in rest
    assert said.count("thinking") == 3  # nothing is read behind `exit`


def test_chat_offers_three_held_out_problems_and_a_new_one_for_each_taken(
    trained: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = talked(trained, "2\n", monkeypatch, capsys)
    first, second = (line for line in said.splitlines() if line.startswith("  1) "))
    offered, later = ([part.split(") ")[1] for part in line.split("   ")] for line in (first, second))
    assert [offered[0], offered[2]] == [later[0], later[2]]
    assert offered[1] != later[1]
    for question in [*offered, later[1]]:
        problem = read_problem(question, build(trained.config.task))
        assert problem is not None
        assert is_held_out(problem.key, trained.config.task.held_out_share)


def test_ctrl_c_stops_the_answer_and_not_the_chat(
    trained: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(tmp_path)
    model = Transformer(trained.config.model)
    model.initialise(torch.Generator().manual_seed(0))
    torch.nn.init.zeros_(model.head.weight)  # all tokens are equal, the first one is taken, and no reply ever ends
    run.write_config(load_config(trained.config))
    shutil.copy(trained.tokenizer_path, run.tokenizer_path)
    save_checkpoint(run.checkpoint_dir("grpo"), 1, model, {"step": torch.zeros(1)}, {"stage": "grpo"}, keep=1)
    run.append_ledger("grpo", key="", weights_hash=weights_hash(model))

    class Typist(io.StringIO):
        """Presses Ctrl-C a moment after the first line."""

        def readline(self, size: int | None = -1, /) -> str:
            if self.tell() == 0:
                signal.setitimer(signal.ITIMER_REAL, 0.2)
            return super().readline()

    monkeypatch.setattr(sys, "stdin", Typist("8,2,4:10\nhello\n"))
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        talk.chat(run, SamplingConfig(temperature=0.0, max_tokens=4000))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    said = capsys.readouterr().out
    assert "\n  stopped\n" in said
    assert "right:" not in said
    assert "wrong:" not in said
    assert "That is no problem of its task" in said
