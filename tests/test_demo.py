"""The model that ships with the package: whole, what its record says, and reached by every verb that takes it."""

import random
import subprocess
import sys
import zipfile
from importlib import resources
from pathlib import Path

import pytest
import torch

from fathom import cli, demo
from fathom.chain.talk import open_speaker
from fathom.checkpoint.state import weights_hash
from fathom.infer.offline import Engine
from fathom.runs import Run
from fathom.tasks import build
from fathom.text.chat import parse_reply

PARTS = ("config.json", "ledger.jsonl", "tokenizer.json")
WEIGHTS = ("config.json", "model.safetensors", "state.json")


def test_its_files_are_data_of_the_package() -> None:
    package = resources.files("fathom.demo")
    step = package / "grpo" / "step_000300"
    files = [package / name for name in PARTS] + [step / name for name in WEIGHTS]
    assert all(file.is_file() for file in files)
    assert sum(len(file.read_bytes()) for file in files) < 4 << 20
    assert Path(str(package)) == demo.RUN


def test_it_is_what_its_ledger_says() -> None:
    torch.set_num_threads(1)
    run = Run(demo.RUN)
    speaker = open_speaker(run)
    trained, scored = run.read_ledger("grpo")[-1], run.read_ledger("eval_after")[-1]
    assert weights_hash(speaker.model) == trained["weights_hash"] == scored["weights_hash"]
    assert speaker.tokenizer.hash == run.read_ledger("tokenize")[-1]["tokenizer_hash"]
    assert "-dirty" not in trained["commit"]
    assert f"{100 * scored['score']['sampled']:.1f} %" in (demo.__doc__ or "")
    assert f"{100 * scored['score']['greedy']:.1f} %" in (demo.__doc__ or "")


def test_it_solves_what_it_learned() -> None:
    task = build(Run(demo.RUN).config.task)
    rng = random.Random(7)
    problems = [task.sample(rng, held_out=True) for _ in range(60)]
    replies = Engine(demo.RUN, device="cpu").generate([each.question for each in problems], temperature=0)
    answers = [parse_reply(reply[0].text).answer or "" for reply in replies]
    solved = sum(task.grade(problem, answer) for problem, answer in zip(problems, answers, strict=True))
    assert solved >= 43  # 88.4 % of 500; fewer of 60 come once in some thousand draws


def test_the_command_takes_it_in_the_place_of_a_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["generate", "--demo", "8,2,4:10", "--temperature", "0"]) == 0
    assert parse_reply(capsys.readouterr().out.strip().removeprefix("<think>")).well_formed
    assert cli.main(["serve", "--port", "1"]) == 2
    assert "or fathom serve --demo" in capsys.readouterr().err


@pytest.mark.slow
def test_a_wheel_holds_it(tmp_path: Path) -> None:
    source = Path(__file__).parents[1]
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(source)]
    subprocess.run(command, check=True)  # pip fetches the build backend
    [wheel] = tmp_path.iterdir()
    held = zipfile.ZipFile(wheel).namelist()
    files = [*PARTS, *(f"grpo/step_000300/{name}" for name in WEIGHTS)]
    assert {f"fathom/demo/{name}" for name in files} <= set(held)
    page = zipfile.ZipFile(wheel).read("fathom/paper.md")
    assert page == (source / "docs" / "paper.md").read_bytes()  # which `fathom explain` reads
