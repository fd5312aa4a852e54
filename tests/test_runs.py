"""A run directory keeps what was written, survives a killed writer and knows one writer at a time."""

import errno
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fathom.config import Config
from fathom.runs import Run, describe_commit, describe_machine, write_whole


def lines(run: Run, name: str) -> list[str]:
    return (run.path / name).read_text().splitlines()


def test_config_comes_back_equal(tmp_path: Path) -> None:
    run = Run(tmp_path / "a" / "run")
    config = Config(seed=7)
    run.write_config(config)
    assert run.config == config
    run.write_config(Config(seed=8))
    assert run.config.seed == 8


def test_naming_a_run_creates_nothing(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    assert (run.read_metrics(), run.read_samples(), run.read_ledger()) == ([], [], [])
    run.truncate_metrics("pretrain", after_step=0)
    with pytest.raises(ValueError, match=r"holds no config\.json"):
        _ = run.config
    assert not run.path.exists()


def test_a_file_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(ValueError, match="is a file"):
        Run(tmp_path / "run")


def test_metrics_are_one_line_a_step(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.append_metrics("pretrain", 1, loss=2.5, tokens=64)
    run.append_metrics("sft", 1, loss=math.nan, expert_shares=[[0.5, math.inf]])
    assert lines(run, "metrics.jsonl") == [
        '{"stage": "pretrain", "step": 1, "loss": 2.5, "tokens": 64}',
        '{"stage": "sft", "step": 1, "loss": null, "expert_shares": [[0.5, null]]}',
    ]
    assert run.read_metrics("sft") == [{"stage": "sft", "step": 1, "loss": None, "expert_shares": [[0.5, None]]}]
    assert [record["stage"] for record in run.read_metrics()] == ["pretrain", "sft"]


def test_samples_and_ledger_come_back(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.append_sample("eval", question="1,2:3", thinking="a\nb", answer=None, correct=False, reply="é\u2028", step=4)
    run.append_ledger("sft", seconds=1.5, score={"sampled": 0.25})
    assert run.read_samples("eval") == [
        {
            "stage": "eval",
            "question": "1,2:3",
            "thinking": "a\nb",
            "answer": None,
            "correct": False,
            "reply": "é\u2028",
            "step": 4,
        }
    ]
    assert run.read_ledger() == [{"stage": "sft", "seconds": 1.5, "score": {"sampled": 0.25}}]
    assert run.read_ledger("grpo") == []


def test_new_samples_take_the_place_of_old_ones(tmp_path: Path) -> None:
    run = Run(tmp_path)
    for stage in ("eval_before", "eval_after"):
        run.append_sample(stage, question="1,2:3", thinking="", answer="1+2", correct=True, reply="")
    run.forget_samples("eval_after")
    assert [sample["stage"] for sample in run.read_samples()] == ["eval_before"]


def test_resume_forgets_the_steps_beyond_the_checkpoint(tmp_path: Path) -> None:
    run = Run(tmp_path)
    for step in range(1, 6):
        run.append_metrics("pretrain", step, loss=1.0)
        run.append_metrics("sft", step, loss=2.0)
    whole = lines(run, "metrics.jsonl")
    with open(run.path / "metrics.jsonl", "a") as file:
        file.write('{"stage": "sft", "st')  # killed mid-write
    run.truncate_metrics("pretrain", after_step=3)
    assert lines(run, "metrics.jsonl") == [line for line in whole if line not in (whole[6], whole[8])]
    assert [record["step"] for record in run.read_metrics("sft")] == [1, 2, 3, 4, 5]
    assert sorted(path.name for path in run.path.iterdir()) == ["metrics.jsonl"]


def test_truncating_nothing_leaves_the_file_alone(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.append_metrics("pretrain", 1, loss=1.0)
    before = (run.path / "metrics.jsonl").stat()
    run.truncate_metrics("pretrain", after_step=1)
    assert (run.path / "metrics.jsonl").stat().st_ino == before.st_ino


def test_truncating_costs_little(tmp_path: Path) -> None:
    line = json.dumps({"stage": "grpo", "step": 0, **{f"value{index}": index / 7 for index in range(25)}})
    (tmp_path / "metrics.jsonl").write_text((line + "\n") * 5000)
    start = time.process_time()
    Run(tmp_path).truncate_metrics("grpo", after_step=-1)
    assert time.process_time() - start < 1.0
    assert (tmp_path / "metrics.jsonl").read_text() == ""


def test_a_torn_line_is_passed_over_and_then_replaced(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.append_ledger("pretrain", seed=0)
    with open(run.path / "ledger.jsonl", "a") as file:
        file.write('{"stage": "sft"}')  # complete JSON, yet its line never ended
    assert [record["stage"] for record in run.read_ledger()] == ["pretrain"]
    run.append_ledger("grpo", seed=0)
    assert lines(run, "ledger.jsonl") == ['{"stage": "pretrain", "seed": 0}', '{"stage": "grpo", "seed": 0}']


@pytest.mark.parametrize("line", ["{broken", "[1]", '{"step": 1}'])
def test_a_foreign_line_is_named(tmp_path: Path, line: str) -> None:
    run = Run(tmp_path)
    run.append_metrics("pretrain", 1, loss=1.0)
    with open(run.path / "metrics.jsonl", "a") as file:
        file.write(line + "\n")
    with pytest.raises(ValueError, match=r"metrics\.jsonl line 2 is no record"):
        run.read_metrics()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full stands in for a full disk")
def test_a_full_disk_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"the disk is full, .*metrics\.jsonl was not written; free some space") as caught:
        Run(tmp_path).append_metrics("pretrain", 1, loss=1.0)
    assert caught.value.errno == errno.ENOSPC


def test_a_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    write_whole(file, "old")
    with pytest.raises(UnicodeEncodeError):
        write_whole(file, "\ud800")
    assert file.read_text() == "old"
    write_whole(file, b"new")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("config.json", "new")]


ROOT = Path(__file__).parents[1]
HOLD = (
    "import sys; from fathom.runs import Run\nwith Run(sys.argv[1]).lock(): print('held', flush=True); sys.stdin.read()"
)


def test_one_writer_at_a_time_and_none_after_a_kill(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    command = [sys.executable, "-c", HOLD, str(run.path)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(RuntimeError, match=f"being written by process {holder.pid}; wait"), run.lock():
            pass
        holder.kill()
    with run.lock():
        assert (run.path / ".lock").read_text() == str(os.getpid())
    with run.lock():
        pass


def test_machine_and_commit_say_where_a_number_came_from() -> None:
    machine = describe_machine()
    assert machine["cores"] == os.cpu_count()
    assert machine["cpu"] and machine["memory_gib"] > 0
    assert machine["python"] == ".".join(map(str, sys.version_info[:3]))
    assert json.loads(json.dumps(machine)) == machine
    commit = describe_commit()
    assert commit is None or (len(commit.removesuffix("-dirty")) == 40 and set(commit[:40]) <= set("0123456789abcdef"))


def test_runs_need_no_torch() -> None:
    check = "import sys, fathom.runs; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], cwd=ROOT).returncode == 0


def test_a_stage_that_goes_on_gives_its_later_samples_anew(tmp_path: Path) -> None:
    run = Run(tmp_path)
    for stage, step in (("sft", 4), ("grpo", 0), ("grpo", 2), ("grpo", 4)):
        run.append_sample(stage, question="", thinking="", answer=None, correct=False, reply="", step=step)
    run.forget_samples("grpo", after_step=2)
    assert [(line["stage"], line["step"]) for line in run.read_samples()] == [("sft", 4), ("grpo", 0), ("grpo", 2)]
    run.forget_samples("grpo")
    assert [line["stage"] for line in run.read_samples()] == ["sft"]
