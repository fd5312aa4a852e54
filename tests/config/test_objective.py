"""Objectives by name, and mixes that are refused where they are born."""

from dataclasses import replace

import pytest

from fathom.config import GRPOConfig, ObjectiveConfig, RewardConfig, SamplingConfig
from fathom.config.objectives import OBJECTIVES, named_objective
from fathom.presets import PRESETS


def objective(**changes) -> ObjectiveConfig:
    return replace(ObjectiveConfig(), **changes)


def test_names_carry_the_published_forms() -> None:
    assert list(OBJECTIVES) == ["default", "grpo_deepseekmath", "r1", "v3.2", "dr_grpo", "dapo", "gspo", "cispo", "ppo"]
    assert named_objective("default") == ObjectiveConfig()
    found = {
        name: (o.advantage, o.surrogate, o.clip_low, o.clip_high, o.aggregation, o.kl_beta, o.kl_estimator)
        for name, o in OBJECTIVES.items()
    }
    assert found == {
        "default": ("mean", "token", 0.2, 0.28, "token", 0.0, "k3_weighted"),
        "grpo_deepseekmath": ("mean_std", "token", 0.2, 0.2, "sequence", 0.04, "k3"),
        "r1": ("mean_std", "token", 10.0, 10.0, "sequence", 0.001, "k3"),
        "v3.2": ("mean", "token", 0.2, 0.2, "sequence", 0.001, "k3_weighted"),
        "dr_grpo": ("mean", "token", 0.2, 0.2, "constant", 0.0, "k3_weighted"),
        "dapo": ("mean_std", "token", 0.2, 0.28, "token", 0.0, "k3_weighted"),
        "gspo": ("mean_std", "sequence", 3e-4, 4e-4, "sequence", 0.0, "k3_weighted"),
        "cispo": ("mean_std", "weight", 1.0, 0.28, "token", 0.0, "k3_weighted"),
        "ppo": ("gae", "token", 0.2, 0.2, "token", 0.001, "k1"),
    }


def test_what_else_the_names_carry() -> None:
    dapo, v32, ppo = (named_objective(name) for name in ("dapo", "v3.2", "ppo"))
    assert (dapo.drop_equal_groups, dapo.mask_truncated, dapo.overlong_share) == (True, True, 4096 / 20480)
    assert (v32.old_policy, v32.stale_limit) == ("sampler", 0.1)
    assert (ppo.kl_in, ppo.entropy_weight, ppo.drop_equal_groups) == ("reward", 0.001, False)
    assert named_objective("r1").reference_reset_steps == 400
    assert named_objective("grpo_deepseekmath").reference_reset_steps == 0


def test_defaults_are_the_recommended_ones() -> None:
    """Mean baseline, token mean, clip 0.2 and 0.28, no KL, one update, temperature 1, nothing truncated."""
    config = GRPOConfig()
    assert (config.objective.advantage, config.objective.aggregation) == ("mean", "token")
    assert (config.objective.clip_low, config.objective.clip_high, config.objective.kl_beta) == (0.2, 0.28, 0.0)
    assert config.objective.drop_equal_groups and config.objective.correction == "none"
    assert config.updates == 1 and 8 <= config.group <= 16
    assert config.sampling.temperature == 1.0 and not config.sampling.truncates


def test_published_models_learn_with_the_settings_of_r1() -> None:
    grpo = PRESETS["v3"].grpo
    assert grpo.objective == named_objective("r1")
    assert (grpo.steps * grpo.updates, grpo.prompts * grpo.group) == (10_400, 8192)


def test_a_typo_gets_the_nearest_name() -> None:
    with pytest.raises(ValueError, match="did you mean dr_grpo"):
        named_objective("drgrpo")
    with pytest.raises(ValueError, match=r"objective\.name='drgrpo' is unknown; choose one of default,"):
        ObjectiveConfig(name="drgrpo")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_every_named_objective_makes_a_config(name: str) -> None:
    assert GRPOConfig(objective=named_objective(name)).objective.name == name


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"clip_dual": 0.5}, r"clip_dual=0\.5 caps ratios at or below 1"),
        ({"clip_dual": 3.0, "surrogate": "weight"}, r"clip_dual=3\.0 has no ratio to cap under surrogate=weight"),
        ({"surrogate": "sequence"}, "aggregation=token would weigh surrogate=sequence"),
        ({"surrogate": "sequence", "aggregation": "constant"}, "aggregation=constant would weigh"),
        (
            {"surrogate": "sequence", "aggregation": "sequence", "advantage": "gae", "drop_equal_groups": False},
            "surrogate=sequence has one ratio for all tokens",
        ),
        ({"correction": "truncate", "old_policy": "sampler"}, "count the gap twice"),
        ({"correction": "mask", "surrogate": "sequence", "aggregation": "sequence"}, "set correction_level=sequence"),
        ({"correction_cap": 0.5}, r"correction_cap=0\.5 would weaken tokens"),
        ({"kl_beta": 0.1, "kl_estimator": "k1"}, "k1 has no gradient in expectation"),
        ({"kl_in": "reward"}, "k3_weighted corrects a gradient"),
        ({"kl_in": "reward", "kl_estimator": "k1"}, "kl_in=reward pays every token apart, which advantage=mean"),
        ({"advantage": "gae"}, "set drop_equal_groups=False"),
        ({"advantage": "best"}, "advantage='best' is unknown; choose one of mean, mean_std, gae"),
        ({"surrogate": "tokens"}, "surrogate='tokens' is unknown"),
        ({"clip_low": 0.0}, r"clip_low=0\.0 is not above zero"),
        ({"overlong_share": 1.5}, r"overlong_share=1\.5 lies outside"),
        ({"kl_beta": -0.1}, r"kl_beta=-0\.1 is no finite number"),
        ({"stale_limit": float("nan")}, "stale_limit=nan is no finite number"),
        ({"entropy_weight": float("inf")}, "entropy_weight=inf is no finite number"),
    ],
)
def test_mixes_without_meaning_are_refused(changes: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        objective(**changes)


def test_mixes_of_an_objective_with_the_rest_are_refused() -> None:
    dual = objective(clip_dual=3.0)
    assert GRPOConfig(updates=2, objective=dual)
    assert GRPOConfig(updates=1, objective=replace(dual, old_policy="sampler"))
    with pytest.raises(ValueError, match=r"grpo\.updates=1"):
        GRPOConfig(objective=dual)
    with pytest.raises(ValueError, match=r"grpo\.group=1 leaves nothing to compare"):
        GRPOConfig(group=1)
    assert GRPOConfig(group=1, objective=named_objective("ppo")).group == 1
    with pytest.raises(ValueError, match="weight 0"):
        RewardConfig(accuracy=0, format=0, language=0)
    with pytest.raises(ValueError, match=r"grpo\.reward\.format=nan"):
        RewardConfig(format=float("nan"))


@pytest.mark.parametrize("cut", [{"top_p": 0.9}, {"top_k": 5}, {"min_p": 0.1}, {"repetition_penalty": 1.1}])
def test_a_truncated_sampling_law_that_the_loss_cannot_represent_is_refused(cut: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="rules tokens out or changes their odds"):
        GRPOConfig(sampling=replace(SamplingConfig(), **cut))
