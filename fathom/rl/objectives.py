"""The members of the GRPO family by name, and the mixes that cannot mean anything."""

from difflib import get_close_matches

from fathom.config import GRPOConfig, ObjectiveConfig

OBJECTIVES = {
    "default": ObjectiveConfig(),
    # DeepSeekMath 4.1-4.2; its clip range is not published, 0.2 is PPO's customary one
    "grpo_deepseekmath": ObjectiveConfig(
        advantage="mean_std",
        clip_low=0.2,
        clip_high=0.2,
        aggregation="sequence",
        kl_beta=0.04,
        kl_estimator="k3",
        reference_reset_steps=0,
        drop_equal_groups=False,
    ),
    # neither the length of an answer nor the spread of its group weighs it (Dr. GRPO 3.2)
    "dr_grpo": ObjectiveConfig(
        advantage="mean",
        clip_low=0.2,
        clip_high=0.2,
        aggregation="constant",
        drop_equal_groups=False,
    ),
    # clip-higher, dynamic sampling, token-level loss, overlong filtering (DAPO 3)
    "dapo": ObjectiveConfig(
        advantage="mean_std",
        clip_low=0.2,
        clip_high=0.28,
        aggregation="token",
        drop_equal_groups=True,
        mask_truncated=True,
    ),
}


def named_objective(name: str) -> ObjectiveConfig:
    """The objective of that name; raises ValueError with the nearest one for any other."""
    if name not in OBJECTIVES:
        near = get_close_matches(name, OBJECTIVES, n=1, cutoff=0.4)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise ValueError(f"objective {name!r} is unknown{hint}; choose one of {', '.join(OBJECTIVES)}")
    return OBJECTIVES[name]


def check_objective(config: GRPOConfig) -> None:
    """Raise ValueError, in one sentence, where parts of the config contradict or disable each other."""
    objective, reward = config.objective, config.reward
    if 0 < objective.clip_dual <= 1:
        raise ValueError(
            f"objective.clip_dual={objective.clip_dual} caps ratios at or below 1, where every update starts; "
            "use a value above 1 (3 is customary) or 0 for none"
        )
    if objective.clip_dual and config.updates == 1:
        raise ValueError(
            f"objective.clip_dual={objective.clip_dual} caps a ratio that grpo.updates=1 holds at exactly 1; "
            "raise grpo.updates or set clip_dual=0"
        )
    if not (reward.accuracy or reward.format or reward.language):
        raise ValueError("grpo.reward gives every part the weight 0, so all answers earn the same; set one above 0")
