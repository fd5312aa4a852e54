"""Held-out accuracy during reinforcement learning: by hand, and without a trace in what is trained."""

import copy
import random
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from fathom.config import GRPOConfig
from fathom.eval.passk import wilson
from fathom.infer.engine import Engine
from fathom.parallel.world import World
from fathom.rl.held_out import HeldOut
from fathom.rl.loop import train_grpo
from fathom.runs import Run
from fathom.tasks import GradingError, Problem, Task
from fathom.tasks.task import is_held_out
from fathom.text.chat import parse_reply, read_reply
from fathom.train.loop import Place

CPU = torch.device("cpu")
WORLD = World(0, 1, CPU)
WORLDS = (WORLD, World(0, 2, CPU), World(1, 2, CPU))


@dataclass(frozen=True)
class Lengths:
    """Countdown's problems; right is an answer of an even number of characters, and one of three cannot be graded."""

    countdown: Task

    def sample(self, rng: random.Random, held_out: bool) -> Problem:
        return self.countdown.sample(rng, held_out)

    def worked(self, problem: Problem, rng: random.Random) -> str:
        return self.countdown.worked(problem, rng)

    def soundness(self, problem: Problem, thinking: str) -> float:
        return 0.0

    def grade(self, problem: Problem, answer: str) -> float:
        if len(answer) == 3:
            raise GradingError("three characters")
        return float(len(answer) % 2 == 0)


def test_the_share_and_its_interval_by_hand(trained_policy) -> None:
    p, task = trained_policy, Lengths(trained_policy.task)
    config = replace(p.config, held_out_every=1, held_out_questions=24)
    held_out = HeldOut.draw(task, p.tokenizer, config, 3, WORLD)
    assert held_out is not None and len({problem.key for problem in held_out.problems}) == 24
    assert all(is_held_out(problem.key, p.task.config.held_out_share) for problem in held_out.problems)
    engine = Engine(p.model, rows=24)
    replies = [read_reply(p.tokenizer, piece.tokens) for (piece,) in engine.generate(held_out.requests)]
    answers = [parse_reply(reply).answer for reply in replies]
    lost = sum(answer is not None and len(answer) == 3 for answer in answers)
    right = sum(answer is not None and len(answer) % 2 == 0 for answer in answers)
    assert 0 < lost < 24 and 0 < right < 24 - lost
    low, high = wilson(right, 24 - lost)
    wanted = {"held_out_accuracy": right / (24 - lost), "held_out_low": low, "held_out_high": high}
    assert held_out.measure(engine) == wanted | {"held_out_ungraded": lost}


def test_processes_share_the_questions_of_one(trained_policy) -> None:
    p = trained_policy
    config = replace(p.config, held_out_every=1, held_out_questions=7)
    whole, *parts = (HeldOut.draw(p.task, p.tokenizer, config, 3, world) for world in WORLDS)
    assert whole is not None and all(parts)
    pairs = [(part.problems, part.requests) for part in parts if part is not None]
    assert [problem for problems, _ in pairs for problem in problems] == [*whole.problems[::2], *whole.problems[1::2]]
    assert [request.seed for _, asked in pairs for request in asked] == [
        request.seed for request in (*whole.requests[::2], *whole.requests[1::2])
    ]


def test_measuring_changes_nothing_that_is_trained(policy, tmp_path: Path) -> None:
    plain, measured = train(policy, policy.config, tmp_path / "a"), tmp_path / "b"
    config = replace(policy.config, held_out_every=2, held_out_questions=6)
    weights = train(policy, config, measured)
    assert all(torch.equal(weights[name], plain[name]) for name in plain)
    first, second = Run(measured).read_metrics("grpo")
    assert 0 <= first["held_out_low"] <= first["held_out_accuracy"] <= first["held_out_high"] <= 1
    assert "held_out_accuracy" not in second
    assert not any("held_out_accuracy" in line for line in Run(tmp_path / "a").read_metrics("grpo"))


def test_more_questions_than_are_held_out_and_odd_settings_are_refused(trained_policy) -> None:
    p = trained_policy
    config = replace(p.config, held_out_every=1, held_out_questions=100_000)
    with pytest.raises(ValueError, match=r"grpo.held_out_questions=100000 cannot be drawn"):
        HeldOut.draw(p.task, p.tokenizer, config, 0, WORLD)
    with pytest.raises(ValueError, match=r"grpo.held_out_every=-1"):
        replace(p.config, held_out_every=-1)


def train(policy, config: GRPOConfig, path: Path) -> dict[str, torch.Tensor]:
    model = copy.deepcopy(policy.model)
    train_grpo(Place(Run(path), "grpo", WORLD), config, model, policy.task, policy.tokenizer, seed=0)
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}
