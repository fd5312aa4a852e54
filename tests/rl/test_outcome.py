"""Statistics of a rollout against their definitions on plain lists."""

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fathom.config import Config
from fathom.eval.passk import clustered_mean, majority_at_k, pass_at_k
from fathom.parallel.world import World
from fathom.report.page import write
from fathom.rl.behaviour import behaviour
from fathom.rl.loop import train_grpo
from fathom.rl.outcome import powers_of_two, rollout_metrics
from fathom.rl.reward import Reward
from fathom.rl.rollout import Episode, Rollout
from fathom.runs import Run
from fathom.tasks import Problem
from fathom.train.loop import Place


def test_band_pass_and_vote_are_those_of_the_groups_at_hand() -> None:
    rng = random.Random(3)
    answers = [[rng.choice("abc") for _ in range(5)] for _ in range(7)]
    answers[2] = answers[2][:3]  # two answers that nobody could grade
    episodes = [
        Episode(
            Problem("1,2:3", "0"), group, [1], [5], [-1.0], False,
            Reward(float(said == "a"), float(said == "a"), 1.0, 1.0), 0, f"t</think><answer>{said}</answer>",
        )
        for group, each in enumerate(answers) for said in each
    ]  # fmt: skip
    place = Place(Run(Path("unused")), "grpo", World(0, 1, torch.device("cpu")))
    found = rollout_metrics(place, Rollout(episodes, episodes, 0, len(episodes)), group=5)
    right = [[float(said == "a") for said in each] for each in answers]
    low, high = clustered_mean(right).interval
    assert (found["accuracy_low"], found["accuracy_high"]) == pytest.approx((low, high))
    for k in (2, 4):
        large = [(each, scores) for each, scores in zip(answers, right, strict=True) if len(each) >= k]
        passed = [pass_at_k(len(scores), int(sum(scores)), k) for _, scores in large]
        voted = [majority_at_k(each, scores, k) for each, scores in large]
        assert found[f"pass@{k}"] == pytest.approx(sum(passed) / len(large))
        assert found[f"maj@{k}"] == pytest.approx(sum(voted) / len(large))


def test_powers_of_two() -> None:
    assert [powers_of_two(most) for most in (0, 1, 2, 5, 16)] == [[], [], [2], [2, 4], [2, 4, 8, 16]]


def test_tries_are_parsed_and_second_thoughts_told_by_their_words() -> None:
    assert behaviour(["8+2=10;8+4=12,12-2=10;", "", "3+4=7"], steps=True) == {"tries": 3, "backtracks": 1}
    thoughts = ["Wait, 3 is odd. Hmm. Let me check: alternatively 4.", "The waiter awaits nobody.", "Actually no"]
    assert behaviour(thoughts, steps=False) == {"reflections": 5}


def test_the_report_shows_samples_once_and_alarms(policy, tmp_path: Path) -> None:
    """A stage leaves samples with its checkpoints; those that a resume draws again are shown once."""
    run = Run(tmp_path)
    run.write_config(Config())
    config = replace(policy.config, steps=2, save_every=1)
    train_grpo(
        Place(run, "grpo", World(0, 1, torch.device("cpu"))), config, policy.model, policy.task, policy.tokenizer, 0
    )
    samples = run.read_samples("grpo")
    assert [sample["step"] for sample in samples] == [1, 1, 1, 2, 2, 2]
    run.append_sample("grpo", **{key: value for key, value in samples[-1].items() if key != "stage"})
    for step in range(3, 40):
        run.append_metrics("grpo", step, reward=0.1, accuracy=0.1, entropy=max(0.001, 1 - step / 20))
    page = write(run).read_text()
    assert page.count('<th scope="row">2</th>\n        <td class="words">') == 3
    assert "Alarm: entropy collapse." in page and "What to do: raise objective.clip_high" in page
