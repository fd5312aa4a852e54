"""The reward model: its loss by hand, what it learns, and what it pays."""

import math
import random
from pathlib import Path

import pytest
import torch

from fathom.config.r1 import PreferenceConfig
from fathom.config.train import OptimizerConfig
from fathom.parallel.world import World
from fathom.rl.reward_model import (
    RewardModel,
    accuracy,
    judged,
    load_reward_model,
    margins,
    save_reward_model,
    train_reward_model,
)
from fathom.rl.scenarios import GeneralTask, Scenarios
from fathom.text.general import Preference, balanced, made_up_preferences, split_preferences

WORLD = World(0, 1, torch.device("cpu"))
PAIRS = made_up_preferences(0, 240)


def test_a_row_is_scored_at_its_end_whatever_it_is_batched_with(policy) -> None:
    model = RewardModel(policy.model)
    torch.nn.init.normal_(model.value.weight, generator=torch.Generator().manual_seed(0))
    rows = [judged(policy.tokenizer, "1+2", text) for text in ("3", "3 and then some", "")]
    together = model.score(rows, policy.tokenizer.pad_id)
    for place, row in enumerate(rows):
        alone = model.value(policy.model(torch.from_numpy(row)[None])).squeeze()[-1]
        torch.testing.assert_close(together[place], alone, rtol=0, atol=1e-5)


def test_the_first_loss_is_that_of_two_equal_answers_and_training_tells_pairs_apart(policy) -> None:
    trained, held_out = split_preferences(PAIRS, 0.3)
    assert not {pair.question for pair in trained} & {pair.question for pair in held_out}
    config = PreferenceConfig(steps=25, rows=16, optimizer=OptimizerConfig(lr=1e-2, weight_decay=0.0))
    model, losses = train_reward_model(policy.model, policy.tokenizer, balanced(trained), config, 0, WORLD)
    assert losses[0] == pytest.approx(math.log(2), abs=1e-6)  # the head starts at zero
    assert losses[-1] < 0.3
    assert accuracy(model, policy.tokenizer, held_out) > 0.65
    assert accuracy(RewardModel(policy.model), policy.tokenizer, held_out) == 0.5
    other, again = train_reward_model(policy.model, policy.tokenizer, balanced(trained), config, 0, WORLD)
    assert again == losses
    torch.testing.assert_close(
        margins(other, policy.tokenizer, held_out[:4]), margins(model, policy.tokenizer, held_out[:4])
    )


def test_it_is_read_back_as_it_was_written(policy, tmp_path: Path) -> None:
    model = RewardModel(policy.model)
    torch.nn.init.normal_(model.value.weight, generator=torch.Generator().manual_seed(0))
    save_reward_model(model, tmp_path / "reward_model" / "model.safetensors")
    back = load_reward_model(tmp_path / "reward_model" / "model.safetensors", policy.model)
    pair = [Preference("1+2", "3", "4")]
    assert torch.equal(margins(back, policy.tokenizer, pair), margins(model, policy.tokenizer, pair))
    assert not any(parameter.requires_grad for parameter in back.parameters())


def test_scenarios_pay_by_rule_or_by_the_odds_against_the_preferred_answer(policy) -> None:
    model = RewardModel(policy.model)
    torch.nn.init.normal_(model.value.weight, generator=torch.Generator().manual_seed(0))
    general = GeneralTask(PAIRS, model, policy.tokenizer, held_out_share=0.25)
    both = Scenarios(policy.task, general, share=0.5)
    rng = random.Random(0)
    drawn = [both.sample(rng, held_out=False) for _ in range(60)]
    asked = [problem for problem in drawn if problem.truth]
    assert 15 < len(asked) < 45
    first = asked[0]
    assert both.grade(first, first.answer) == pytest.approx(0.5)
    with torch.no_grad():
        margin = margins(model, policy.tokenizer, [Preference(first.question, "No.", first.answer)])
    assert both.grade(first, "No.") == pytest.approx(float(torch.sigmoid(margin)), abs=1e-6)
    checked = next(problem for problem in drawn if not problem.truth)
    for answer in ("1", "nonsense", str(checked.target)):
        assert both.grade(checked, answer) == policy.task.grade(checked, answer)
    held_out = {both.sample(rng, held_out=True).question for _ in range(60)}
    assert not held_out & {problem.question for problem in asked}
