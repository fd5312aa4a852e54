"""A small run with every stage, written the way the stages write it."""

import copy
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fathom.config import Config
from fathom.report.page import write
from fathom.report.plan_page import plan_page
from fathom.runs import Run

MACHINE: dict[str, object] = {
    "cpu": "Example CPU",
    "cores": 2,
    "memory_gib": 23.5,
    "gpus": [],
    "python": "3.11.9",
    "platform": "Linux",
}
EVALUATION = {"problems": 500, "answers": 1000}
SCORES = {
    "control_random": {"solved": 0.371, "low": 0.342, "high": 0.401, "tries": 1.4},
    "eval_before": EVALUATION
    | {"sampled": 0.263, "sampled_low": 0.237, "sampled_high": 0.291, "mean_tries": 1.5, "mean_length": 16.2}
    | {"greedy": 0.55, "greedy_low": 0.506, "greedy_high": 0.593},
    "eval_sft_control": EVALUATION
    | {"sampled": 0.452, "sampled_low": 0.421, "sampled_high": 0.483, "mean_tries": 1.5, "mean_length": 16.4}
    | {"greedy": 0.604, "greedy_low": 0.56, "greedy_high": 0.646},
    "eval_after": EVALUATION
    | {"sampled": 0.83, "sampled_low": 0.805, "sampled_high": 0.852, "mean_tries": 1.1, "mean_length": 13.1}
    | {"greedy": 0.87, "greedy_low": 0.838, "greedy_high": 0.897},
    "mtp_check": {
        "equal": True,
        "acceptance": 0.713,
        "tokens_per_step": 1.71,
        "plain_tokens_per_s": 4000.0,
        "speculative_tokens_per_s": 3600.0,
        "answers": 64,
    },
}

PLAN: dict[str, Any] = {
    "model": {
        "name": "v3",
        "total": 671_026_419_200,
        "active": 37_552_297_472,
        "parts": {"embedding": 926_679_040, "attention": 11_413_547_008, "routed_experts": 653_908_770_816, "mtp": 0},
        "active_parts": {"embedding": 926_679_040, "attention": 11_413_547_008, "routed_experts": 20_434_649_088},
    },
    "cache": {"kind": "mla", "elements": 35_136, "bytes": {"BF16": 70_272, "FP8": 40_016}},
    "flops": {"seq_len": 4096, "training": 250.46e9},
    "memory": {
        "parts": {"weights": 20 * 2**30, "activations": 40 * 2**30, "cache": 0},
        "device_bytes": 75 * 2**30,
        "fits": True,
        "fix": "",
    },
    "layout": {"data": 128, "pipeline": 16, "context": 1, "schedule": "dualpipe", "recompute": "none"},
    "schedule": {
        "schedule": "dualpipe",
        "ranks": 8,
        "micro_batches": 20,
        "times": {"F": 1.0, "B": 1.0, "W": 1.0, "FB": None},
        "bubbles": [{"schedule": "1f1b", "devices": 8, "bubble": 21.0}],
    },
    "cost": {
        "mfu": 0.391,
        "lines": [
            {"name": "pretraining", "tokens": 14.8e12, "hours": 1300.78, "gpu_hours": 2664e3, "dollars": 5.328e6}
            | {"energy_kwh": 1_864_800.0, "included": True, "note": ""},
            {"name": "post-training", "tokens": None, "hours": 2.44, "gpu_hours": 5e3, "dollars": 1e4}
            | {"energy_kwh": 3500.0, "included": True, "note": "V3 Table 1"},
            {"name": "R1 <on top>", "tokens": None, "hours": 71.8, "gpu_hours": 147e3, "dollars": 294e3}
            | {"energy_kwh": 102_900.0, "included": False, "note": ""},
        ],
        "excluded": ["research", "staff"],
    },
    "serving": {
        "sequences": 812,
        "batches": [{"rows": 1, "tokens_per_s": 1048.0}, {"rows": 8, "tokens_per_s": 2596.0}],
    },
    "layouts": [
        {"layout": "expert=8", "tokens_per_s": 152_344.0, "mfu": 0.31, "peak_memory_bytes": 101.3e9, "hours": 18.2},
        {"layout": "expert=16 pipeline=2", "tokens_per_s": 142_344.0, "mfu": 0.29, "peak_memory_bytes": 88e9},
    ],
    "command": "torchrun --nproc_per_node 8 -m fathom pretrain --preset v3",
    "published": [{"name": "parameters", "computed": "671,026,419,200", "printed": "671B"}],
}

Curve = Callable[[int], float]
MakeRun = Callable[..., Run]


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """Builds runs under the test's own directory; `accuracy` and `length` map a step of GRPO to its value."""

    def make(accuracy: Curve = rising, length: Curve = shrinking) -> Run:
        return write_run(tmp_path / str(len(list(tmp_path.iterdir()))), accuracy=accuracy, length=length)

    return make


@pytest.fixture
def plan() -> dict[str, Any]:
    """A plan as `fathom plan --json` prints it, of all parts something."""
    return copy.deepcopy(PLAN)


@pytest.fixture(scope="session")
def plan_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of that plan."""
    path = tmp_path_factory.mktemp("plan") / "plan.html"
    path.write_text(plan_page(PLAN), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of one whole run, for tests that only read it."""
    return write(write_run(tmp_path_factory.mktemp("report") / "demo"))


def rising(step: int) -> float:
    return 0.3 + 0.5 * step / 60


def shrinking(step: int) -> float:
    return 16.0 - 3.0 * step / 60


def write_run(path: Path, steps: int = 60, accuracy: Curve = rising, length: Curve = shrinking) -> Run:
    run = Run(path)
    run.write_config(Config())
    rng = random.Random(0)
    write_training(run, steps, rng)
    for step in range(1, steps + 1):
        noise = rng.gauss(0, 0.01)
        run.append_metrics(
            "grpo",
            step,
            reward=accuracy(step) + 0.1 + noise,
            accuracy=accuracy(step) + noise,
            format=0.97,
            length=length(step) + rng.gauss(0, 0.01),
            length_correct=length(step) - 1.5,
            length_wrong=length(step) + 2 if step != 3 else math.nan,
            entropy=0.5 - 0.4 * step / steps,
            groups_kept=12,
            groups_dropped=4,
            truncated=0.01,
            max_vio=0.1,
            seconds=0.4,
        )
    write_samples(run)
    write_ledger(run, steps)
    return run


def write_training(run: Run, steps: int, rng: random.Random) -> None:
    for stage, floor in (("pretrain", 3.0), ("sft", 0.8)):
        for step in range(1, steps + 1):
            loss = floor + 4 * math.exp(-step / 15) + rng.gauss(0, 0.05)
            run.append_metrics(
                stage,
                step,
                loss=1.3 * loss,
                loss_main=loss,
                loss_mtp=loss + 0.4,
                max_vio=2 * math.exp(-step / 10) + 0.05,
                mtp_acceptance=0.7 * (1 - math.exp(-step / 20)),
                expert_shares=[[0.25, 0.27, 0.23, 0.25], [0.31, 0.19, 0.24, 0.26], [0.4, 0.2, 0.2, 0.2]],
            )
            if step % 20 == 0:
                run.append_metrics(stage, step, validation_loss=loss + 0.1)
    ranks = [{"compute": 0.1, "communication": 0.02 * rank, "bubble": 0.0, "data": 0.001} for rank in range(2)]
    forecast = {"devices": 2, "slots": 6, "before": 0.31, "after": 0.12, "hindsight": 0.04}
    run.append_metrics("sft", steps, breakdown=ranks, placement=forecast)


def write_samples(run: Run) -> None:
    run.append_sample(
        "eval_before",
        question="8,2,4:10",
        thinking="8+2=10,10-4=6;8-2=6,6+4=10",
        answer="8-2+4",
        correct=True,
        reply="8+2=10,10-4=6;8-2=6,6+4=10</think><answer>8-2+4</answer>",
    )
    run.append_sample(
        "eval_before",
        question="13,7,19:25",
        thinking="<img src=x onerror=alert(1)> 13+7=20",
        answer=None,
        correct=False,
        reply="<img src=x onerror=alert(1)> 13+7=20</think><b>20",
    )
    for question, answer in (("8,2,4:10", "8-2+4"), ("13,7,19:25", "13-7+19")):
        run.append_sample(
            "eval_after",
            question=question,
            thinking="13-7=6,6+19=25",
            answer=answer,
            correct=True,
            reply=f"13-7=6,6+19=25</think><answer>{answer}</answer>",
        )


def write_ledger(run: Run, steps: int) -> None:
    for stage, seconds in (("pretrain", 45.0), ("sft", 62.5), ("grpo", 104.25)):
        run.append_ledger(
            stage,
            seconds=seconds,
            steps=steps,
            tokens=1_234_567,
            flops=2.0e12,
            peak_memory_gib=1.25,
            data_hash="d" * 64,
            weights_hash="a" * 64,
            seed=0,
            loss=1.5,
            commit="c" * 40 + "-dirty",
            machine=MACHINE,
            dollars=seconds / 3600 * 0.1,
        )
    for stage, score in SCORES.items():
        run.append_ledger(stage, seconds=5.0, seed=0, score=score, machine=MACHINE, dollars=0.0001)
