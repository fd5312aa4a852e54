from dataclasses import replace

import pytest

from fathom.config import GRPOConfig, ObjectiveConfig, RewardConfig
from fathom.rl.objectives import OBJECTIVES, check_objective, named_objective


def test_names_carry_the_published_forms() -> None:
    assert set(OBJECTIVES) == {"default", "grpo_deepseekmath", "dr_grpo", "dapo"}
    assert named_objective("default") == ObjectiveConfig()
    assert (ObjectiveConfig().clip_low, ObjectiveConfig().clip_high) == (0.2, 0.28)
    math = named_objective("grpo_deepseekmath")
    assert (math.advantage, math.aggregation, math.kl_estimator, math.kl_beta) == ("mean_std", "sequence", "k3", 0.04)
    dr = named_objective("dr_grpo")
    assert (dr.advantage, dr.aggregation, dr.kl_beta) == ("mean", "constant", 0.0)
    dapo = named_objective("dapo")
    assert (dapo.clip_low, dapo.clip_high, dapo.aggregation, dapo.kl_beta) == (0.2, 0.28, "token", 0.0)
    assert dapo.drop_equal_groups
    assert dapo.mask_truncated


def test_a_typo_gets_the_nearest_name() -> None:
    with pytest.raises(ValueError, match="did you mean dr_grpo"):
        named_objective("drgrpo")


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_every_named_objective_passes_its_own_check(name: str) -> None:
    check_objective(GRPOConfig(objective=named_objective(name)))


def test_mixes_without_meaning_are_refused() -> None:
    stale = GRPOConfig(updates=2)
    check_objective(replace(stale, objective=ObjectiveConfig(clip_dual=3.0)))
    with pytest.raises(ValueError, match="at or below 1"):
        check_objective(replace(stale, objective=ObjectiveConfig(clip_dual=0.5)))
    with pytest.raises(ValueError, match=r"grpo\.updates=1"):
        check_objective(GRPOConfig(objective=ObjectiveConfig(clip_dual=3.0)))
    with pytest.raises(ValueError, match="weight 0"):
        check_objective(GRPOConfig(reward=RewardConfig(accuracy=0, format=0, language=0)))
