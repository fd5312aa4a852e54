"""The whole chain: skipped when done, the same number for number after any interruption, one sentence on Ctrl-C."""

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from fathom.chain import laptop
from fathom.config import Config, GRPOConfig, ObjectiveConfig, ScheduleConfig
from fathom.runs import Run

WALL_TIME = {"seconds", "tokens_per_s", "rollout_tokens_per_s", "mfu"}
ALL_STAGES = [
    *("tokenize", "pretrain", "sft", "eval_before", "grpo"),
    *("eval_after", "control_random", "mtp_check", "sft_control", "eval_sft_control"),
]


def hashes(run: Run) -> dict[str, str]:
    return {line["stage"]: line.get("weights_hash", "") for line in run.read_ledger()}


def booked(run: Run, before: int) -> list[str]:
    """Stages whose lines were added to a ledger of `before` lines."""
    return [line["stage"] for line in run.read_ledger()[before:]]


def test_the_chain_ends_with_a_ledger_and_a_report(finished: Path, micro: Config) -> None:
    run = Run(finished)
    assert [line["stage"] for line in run.read_ledger()] == ALL_STAGES
    assert run.config == micro
    page = run.report_path.read_text()
    assert page.startswith("<!doctype html>") or page.lower().startswith("<!doctype html>")
    assert "GRPO" in page and len(page) > 10_000


def test_a_finished_chain_is_skipped_and_left_as_it_is(run: Run, micro: Config) -> None:
    before = hashes(run), run.read_metrics(), run.read_samples()
    started = time.monotonic()
    laptop.run(micro, run.path)
    assert time.monotonic() - started < 10
    assert booked(run, len(ALL_STAGES)) == []
    assert (hashes(run), run.read_metrics(), run.read_samples()) == before


def test_another_setting_of_grpo_repeats_grpo_and_what_follows_from_it(run: Run, micro: Config) -> None:
    before = hashes(run)
    changed = replace(micro, grpo=replace(micro.grpo, optimizer=replace(micro.grpo.optimizer, lr=3e-3)))
    laptop.run(changed, run.path)
    again = booked(run, len(ALL_STAGES))
    assert again[:2] == ["grpo", "eval_after"] and "mtp_check" in again
    assert set(again) <= {"grpo", "eval_after", "control_random", "mtp_check"}
    moved = {stage for stage, value in hashes(run).items() if value != before[stage]}
    assert moved == {"grpo", "eval_after", "mtp_check"}
    assert [line["step"] for line in run.read_metrics("grpo")] == [1, 2]
    laptop.run(micro, run.path)  # and back
    assert hashes(run) == before


def test_r1_zero_goes_without_a_cold_start(run: Run, micro: Config) -> None:
    """Straight from the pretrained model; what the other chain left is skipped where it is the same."""
    laptop.run(replace(micro, cold_start=False, preset="laptop-zero"), run.path)
    assert booked(run, len(ALL_STAGES))[:3] == ["eval_before", "grpo", "eval_after"]
    newest = hashes(run)
    assert newest["eval_before"] == newest["pretrain"] != newest["sft"]
    assert "laptop-zero" in run.report_path.read_text()


def test_a_new_zero_run_has_no_stage_of_solutions(micro: Config, tmp_path: Path) -> None:
    laptop.run(replace(micro, cold_start=False), tmp_path)
    stages = [line["stage"] for line in Run(tmp_path).read_ledger()]
    assert stages == [stage for stage in ALL_STAGES if "sft" not in stage]
    assert not list(Run(tmp_path).shards_dir.glob("solved*"))


# ---- interruptions: commands are forked off a process that has imported everything -----------------------------------

FORK = """
import json, os, signal, sys, time
from pathlib import Path
import matplotlib.backends.backend_svg, torch
import fathom.chain.laptop
from fathom.cli import main

torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))])  # imports for another second

def count(path):
    return path.read_bytes().count(b"\\n") if path.exists() else 0

def attempt(args, log, metrics, stop=None, lines=0, delay=0.0):
    child = os.fork()
    if child == 0:
        os.setsid()
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
        os.dup2(1, 2)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        code = main(args)
        sys.stdout.flush()
        os._exit(code)
    done = 0
    while stop and not done and count(Path(metrics)) < lines:
        time.sleep(0.002)
        done, status = os.waitpid(child, os.WNOHANG)
    if stop and not done:
        time.sleep(delay)
        os.kill(child, getattr(signal, stop))
    if not done:
        _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)

for order in map(json.loads, sys.stdin):
    print(json.dumps(attempt(**order)), flush=True)
"""


@dataclass(frozen=True)
class Terminal:
    """Somewhere to give commands and to interrupt them."""

    process: "subprocess.Popen[str]"
    folder: Path

    def command(self, config: Config, out: Path, stop: str | None = None, lines: int = 0, delay: float = 0.0) -> int:
        """The exit code of `fathom run laptop`; `stop` names the signal sent once metrics.jsonl has `lines` lines."""
        toml = self.folder / "config.toml"
        toml.write_text("\n".join(toml_lines(asdict(config))))
        args = ["run", "laptop", "--config", str(toml), "--out", str(out)]
        order = {"args": args, "log": str(self.log), "metrics": str(out / "metrics.jsonl")}
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(order | {"stop": stop, "lines": lines, "delay": delay}) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    @property
    def log(self) -> Path:
        return self.folder / "log"


@pytest.fixture
def terminal(tmp_path: Path):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "FATHOM_TEST": str(tmp_path)}
    command = [sys.executable, "-c", FORK]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        yield Terminal(process, tmp_path)
        assert process.stdin is not None
        process.stdin.close()


def toml_lines(section: Mapping[str, Any], name: str = "") -> list[str]:
    """A config section as TOML, its own fields before its subsections."""
    lines = [f"[{name}]"] if name else []
    fields = {key: "none" if value is None else value for key, value in section.items()}
    lines += [f"{key} = {json.dumps(value)}" for key, value in fields.items() if not isinstance(value, dict)]
    for key, value in fields.items():
        if isinstance(value, dict):
            lines += toml_lines(value, f"{name}.{key}" if name else key)
    return lines


def exacting(micro: Config) -> Config:
    """Everything that a resume could get wrong, in one chain."""
    low = replace(micro.pretrain.optimizer, moments="bfloat16", ema_decay=0.9)
    phases = ScheduleConfig(warmup_steps=2, batch_ramp=0.8, batch_start=0.5, mtp_weight_final=0.0, mtp_switch=0.4)
    return replace(
        micro,
        pretrain=replace(micro.pretrain, steps=7, save_every=3, optimizer=low, schedule=phases),
        sft=replace(micro.sft, steps=30, save_every=7),
        grpo=GRPOConfig(
            steps=7,
            prompts=2,
            group=6,
            updates=2,
            micro_batch_rows=5,
            mtp_weight=0.3,
            save_every=2,
            objective=ObjectiveConfig(kl_beta=0.05, reference_reset_steps=3),
            sampling=micro.grpo.sampling,
            optimizer=replace(micro.grpo.optimizer, lr=3e-3, moments="bfloat16", ema_decay=0.5),
            schedule=replace(micro.grpo.schedule, warmup_steps=0),
        ),
    )


def without_wall_time(run: Run) -> list[dict[str, Any]]:
    return [{name: value for name, value in line.items() if name not in WALL_TIME} for line in run.read_metrics()]


def require_equal_runs(broken: Run, unbroken: Run) -> None:
    found, wanted = without_wall_time(broken), without_wall_time(unbroken)
    assert [(line["stage"], line["step"]) for line in found] == [(line["stage"], line["step"]) for line in wanted]
    for line, other in zip(found, wanted, strict=True):
        assert line == other
    assert [(line["stage"], line.get("weights_hash")) for line in broken.read_ledger()] == [
        (line["stage"], line.get("weights_hash")) for line in unbroken.read_ledger()
    ]
    assert broken.read_samples() == unbroken.read_samples()


def kill_until_done(terminal: Terminal, config: Config, out: Path, lines: Sequence[int], seed: int) -> int:
    """Kill the command again and again, each time after some more lines and a random moment; how many kills hit."""
    rng, hits = random.Random(seed), 0
    for count in lines:
        code = terminal.command(config, out, "SIGKILL", count, rng.uniform(0, 0.03))
        assert code in (-9, 0), terminal.log.read_text()
        hits += code == -9
    assert terminal.command(config, out) == 0, terminal.log.read_text()
    return hits


def test_a_chain_killed_at_any_moment_ends_as_an_unbroken_one(
    terminal: Terminal, micro: Config, tmp_path: Path
) -> None:
    config = exacting(micro)
    assert terminal.command(config, tmp_path / "unbroken") == 0, terminal.log.read_text()
    unbroken, broken = Run(tmp_path / "unbroken"), Run(tmp_path / "broken")
    taught = [line["groups_kept"] for line in unbroken.read_metrics("grpo")]
    assert sum(count > 0 for count in taught) >= 5  # otherwise there is little to get wrong
    assert kill_until_done(terminal, config, broken.path, [0, 5, 6, 18, 36, 39, 41, 43], seed=1) >= 6
    require_equal_runs(broken, unbroken)


@pytest.mark.ranks
def test_two_processes_killed_at_any_moment_end_as_unbroken_ones(
    terminal: Terminal, micro: Config, tmp_path: Path
) -> None:
    config = replace(exacting(micro), workers=2)
    assert terminal.command(config, tmp_path / "unbroken") == 0, terminal.log.read_text()
    unbroken, broken = Run(tmp_path / "unbroken"), Run(tmp_path / "broken")
    assert {line["processes"] for line in unbroken.read_ledger()} == {2}
    assert kill_until_done(terminal, config, broken.path, [40], seed=2) == 1
    require_equal_runs(broken, unbroken)
    assert leftovers(tmp_path) == []


def test_ctrl_c_is_one_sentence_and_the_same_command_goes_on(terminal: Terminal, micro: Config, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for lines in (2, 20):
        assert terminal.command(micro, out, "SIGINT", lines) == 130
        said = terminal.log.read_text().splitlines()
        assert [line for line in said if line.startswith("fathom: ")] == said[-1:]
        assert "interrupted; the run can be resumed with the same command" in said[-1]
        assert "Traceback" not in "".join(said)
    assert terminal.command(micro, out) == 0
    assert [line["stage"] for line in Run(out).read_ledger()] == ALL_STAGES


@pytest.mark.ranks
def test_ctrl_c_ends_both_processes(terminal: Terminal, micro: Config, tmp_path: Path) -> None:
    assert terminal.command(replace(micro, workers=2), tmp_path / "out", "SIGINT", 8) == 130
    said = terminal.log.read_text()
    assert "Traceback" not in said and "interrupted; the run can be resumed" in said
    assert leftovers(tmp_path) == []


def leftovers(folder: Path) -> list[str]:
    """Processes that still run a few seconds after their command ended, found by their environment."""
    for _ in range(50):
        found = [name for name in os.listdir("/proc") if name.isdigit() and is_worker(Path("/proc", name), folder)]
        if not found:
            break
        time.sleep(0.2)
    return found


def is_worker(process: Path, folder: Path) -> bool:
    try:
        mine = f"FATHOM_TEST={folder}".encode() in (process / "environ").read_bytes().split(b"\0")
        return mine and b"multiprocessing" in (process / "cmdline").read_bytes()
    except OSError:
        return False
