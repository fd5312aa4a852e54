"""The command line: help, flags, files and exit codes."""

import errno
import inspect
import os
import re
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import fathom.config.model
import fathom.config.objective
import fathom.config.rl
import fathom.config.task
import fathom.config.text
import fathom.config.train
from fathom import cli
from fathom.cli import Fields, Out, Resume, Toml, main
from fathom.config import Config
from fathom.config.load import load_config
from fathom.config.objectives import named_objective
from fathom.presets import preset
from fathom.runs import Run


def help_of(verb: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> str:
    """The help text of a verb, boxes and line breaks taken out."""
    monkeypatch.setenv("COLUMNS", "120")  # one column; a wider page has several
    with pytest.raises(SystemExit) as stop:
        main([verb, "--help"])
    assert stop.value.code == 0
    return " ".join(re.sub("[│╭╮╰╯─]", " ", capsys.readouterr().out).split())


def parsed(flags: list[str], monkeypatch: pytest.MonkeyPatch) -> tuple[Config, Path | None, bool]:
    """What `fathom pretrain FLAGS` would train with."""
    kept: list[tuple[Config, Path | None, bool]] = []

    def pretrain(config: Fields, toml: Toml = None, out: Out = None, resume: Resume = False) -> None:
        kept.append((config, out, resume))

    monkeypatch.setitem(cli.VERBS, "pretrain", pretrain)
    assert main(["pretrain", *flags]) == 0
    return kept[0]


def test_overview_has_one_line_a_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    listed = " ".join(line.split()[0] for line in lines if line.startswith("  "))
    verbs = (
        "run plan tokenize pretrain sft grpo eval generate chat serve conform report export import bench simulate "
        "unlocks explain reward"
    )
    assert listed == verbs
    assert all(len(line) <= 100 for line in lines)


@pytest.mark.parametrize("words", [["--help"], ["grpo", "--help"], ["sfft"]])
def test_help_does_not_import_torch(words: list[str]) -> None:
    program = (
        "import sys\nfrom fathom.cli import main\n"
        f"try: main({words!r})\nexcept SystemExit: pass\nsys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, check=False).returncode == 0


def test_what_cannot_be_served_is_refused_before_torch_is_imported(tmp_path: Path) -> None:
    Run(tmp_path).write_config(Config())
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = str(other.getsockname()[1])
        slips = {
            "serve no/such/run": "no/such/run holds no config.json",
            f"serve {tmp_path}": f"{tmp_path} holds no trained model",
            "serve --demo --host 0.0.0.0": "there is no API key",
            "serve --demo --api_key_file absent": "No such file or directory: absent",
            f"serve --demo --port {taken}": f"cannot listen on 127.0.0.1:{taken}",
            "serve --demo --engine vllm --engine_command no-such": "'no-such' names no program",
            "serve --demo --engine vllm --events_per_s 5": "--events_per_s 5.0 has no counterpart in vllm",
            "chat no/such/run": "no/such/run holds no config.json",
        }
        program = (
            "import sys\nfrom fathom.cli import main\n"
            f"for words in {list(slips)!r}:\n"
            "    main(words.split())\n"
            "    assert 'torch' not in sys.modules, words\n"
        )
        environment = {name: value for name, value in os.environ.items() if name != "FATHOM_API_KEY"}
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    for said, sentence in zip(done.stderr.splitlines(), slips.values(), strict=True):
        assert sentence in said


@pytest.mark.parametrize("verb", cli.VERBS)
def test_help_of_every_verb_has_an_example(
    verb: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert f"Example: fathom {verb} " in help_of(verb, capsys, monkeypatch)


def test_help_has_every_fields_comment(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    text = help_of("grpo", capsys, monkeypatch)
    modules = [fathom.config, fathom.config.model, fathom.config.objective, fathom.config.rl]
    modules += [fathom.config.task, fathom.config.text, fathom.config.train]
    source = "\n".join(map(inspect.getsource, modules))
    fields = re.findall(r"^    (\w+): [^\n]*?  # ([^\n]+)$", source, re.MULTILINE)
    assert len(fields) > 60
    for name, comment in fields:
        assert name in text
        assert " ".join(comment.split()) in text


def test_flags_reach_every_depth(monkeypatch: pytest.MonkeyPatch) -> None:
    flags = "--model.attention.kv_lora_rank 8 --grpo.steps=100 --grpo.objective.kl_beta 0.5 --seed 3"
    flags += " --text.sources a.txt b.txt --model.tie_word_embeddings --out there --resume"
    config, out, resume = parsed(flags.split(), monkeypatch)
    assert config == load_config(
        preset("laptop"),
        None,
        {
            "model.attention.kv_lora_rank": 8,
            "grpo.steps": 100,
            "grpo.objective.kl_beta": 0.5,
            "seed": 3,
            "text.sources": ["a.txt", "b.txt"],
            "model.tie_word_embeddings": True,
        },
    )
    assert (out, resume) == (Path("there"), True)


def test_an_objective_by_name_with_a_field_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    flags = "--grpo.objective.clip_high 0.3 --grpo.objective.name dapo --grpo.steps 5"
    config, _, _ = parsed(flags.split(), monkeypatch)
    assert config.grpo.objective == replace(named_objective("dapo"), clip_high=0.3)
    assert config.grpo.steps == 5


def test_flags_win_over_toml_and_toml_over_the_preset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("[pretrain]\nsteps = 7\nbatch_rows = 9\n")
    config, _, _ = parsed(["--preset", "v3", "--config", str(file), "--pretrain.steps", "8"], monkeypatch)
    assert (config.preset, config.model) == ("v3", preset("v3").model)
    assert (config.pretrain.steps, config.pretrain.batch_rows) == (8, 9)
    assert config.pretrain.optimizer == preset("v3").pretrain.optimizer


def test_toml_may_name_its_preset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('preset = "laptop-mul"\nseed = 4\n')
    config, _, _ = parsed([f"--config={file}"], monkeypatch)
    assert (config.preset, config.seed, config.task.operators) == ("laptop-mul", 4, "+-*")
    assert main(["pretrain", "--preset", "v3", "--config", str(file)]) == 2


def test_a_begun_run_keeps_its_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = load_config(preset("laptop-four"), None, {"grpo.steps": 7})
    Run(tmp_path).write_config(begun)
    assert parsed(["--out", str(tmp_path)], monkeypatch)[0] == begun
    assert parsed(["--out", str(tmp_path), "--preset", "v2"], monkeypatch)[0] == preset("v2")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["sfft"], "fathom: 'sfft' is no verb; did you mean `fathom sft`?"),
        (["xyzzy"], "the verbs are run, plan,"),
        (["run", "lapptop"], "did you mean laptop?"),
        (["run", "--seed", "3"], "give the PRESET right after the verb"),
        (["run", "laptop", "--preset", "v3"], "--preset does not go with fathom run"),
        (["pretrain", "--preset", "v33"], "did you mean v3?"),
        (["pretrain", "--config", "absent.toml"], "there is no config file absent.toml"),
        (["eval", "no/such/run"], "no/such/run holds no config.json"),
        (["chat"], "give the RUN right after the verb"),
        (["serve", "--port", "1"], "give the RUN right after the verb"),
        (["serve", "no/such/run"], "no/such/run holds no config.json"),
        (["serve", ".", "--host", "0.0.0.0"], "there is no API key"),
        (["serve", ".", "--port", "70000"], "give one from 0 to 65535"),
    ],
)
def test_mistakes_get_one_sentence_and_exit_2(
    words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize(
    ("flags", "hint"),
    [
        (["--grpo.step", "3"], "--grpo.steps INT"),
        (["--kv_lora_rank", "3"], "--model.attention.kv_lora_rank INT"),
        (["--pretrain.optimiser.lr", "3"], "--pretrain.optimizer.lr FLOAT"),
        (["--resum"], "--resume"),
        (["--grpo.steps", "many"], "--grpo.steps"),
        (["--pretrain.schedule.decay", "exp"], "'constant', 'linear', 'cosine', 'v3'"),
        (["--model.hidden_size", "0"], "model.hidden_size=0 is not above zero; give a positive number"),
    ],
)
def test_bad_flags_get_the_nearest_name_and_exit_2(
    flags: list[str], hint: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    with pytest.raises(SystemExit) as stop:
        main(["grpo" if "resum" not in flags[0] else "sft", *flags])
    assert stop.value.code == 2
    assert hint in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        (ValueError("the corpus is empty;\n  name a file"), 2, "fathom: the corpus is empty; name a file\n"),
        (OSError(errno.ENOSPC, "No space left on device", "a/b"), 1, "fathom: the disk is full (a/b); free some space"),
        (PermissionError(errno.EACCES, "Permission denied", "a/b"), 1, "fathom: Permission denied: a/b\n"),
        (MemoryError(), 1, "fathom: the machine ran out of memory; lower micro_batch_rows"),
        (RuntimeError("CUDA error"), 1, "fathom: CUDA error (--traceback shows where)\n"),
        (KeyboardInterrupt(), 130, "resumed with `fathom sft --out 'my run' --resume`\n"),
    ],
)
def test_errors_get_one_sentence_and_their_code(
    error: BaseException, code: int, sentence: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def sft(config: Fields, out: Out = None, resume: Resume = False) -> None:
        raise error

    monkeypatch.setitem(cli.VERBS, "sft", sft)
    assert main(["sft", "--out", "my run"]) == code
    said = capsys.readouterr().err
    assert sentence in said
    assert len(said.splitlines()) == 1
    assert main(["--traceback", "sft", "--out", "my run"]) == code
    said = capsys.readouterr().err
    assert "Traceback (most recent call last)" in said
    assert sentence in said


def test_our_own_slips_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def sft(config: Fields) -> None:
        raise KeyError("a bug")

    monkeypatch.setitem(cli.VERBS, "sft", sft)
    with pytest.raises(KeyError):
        main(["sft"])


def test_a_reader_that_leaves_early_sees_no_traceback() -> None:
    command = f"{sys.executable} -m fathom grpo --help | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert done.stdout.startswith("usage: fathom grpo")
    assert done.stderr == ""


def test_generate_wants_a_prompt(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Run(tmp_path).write_config(Config())
    assert main(["generate", str(tmp_path), "--temperature", "0"]) == 2
    assert "give one or more prompts" in capsys.readouterr().err
