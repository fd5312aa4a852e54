"""The published members of the policy-gradient family, by name."""

from difflib import get_close_matches

from fathom.config.objective import ObjectiveConfig

OBJECTIVES: dict[str, ObjectiveConfig] = {
    objective.name: objective
    for objective in (
        # Dr. GRPO's advantage, DAPO's clip range and denominator, no KL
        ObjectiveConfig(),
        # DeepSeekMath 4.1-4.2; its clip range is not published, 0.2 is PPO's customary one
        ObjectiveConfig(
            name="grpo_deepseekmath",
            advantage="mean_std",
            clip_high=0.2,
            aggregation="sequence",
            kl_beta=0.04,
            kl_estimator="k3",
            reference_reset_steps=0,
            drop_equal_groups=False,
        ),
        # R1 2.2-2.3: KL and the reference's renewal of R1-Zero, the clip of R1's first stage
        ObjectiveConfig(
            name="r1",
            advantage="mean_std",
            clip_low=10.0,
            clip_high=10.0,
            aggregation="sequence",
            kl_beta=1e-3,
            kl_estimator="k3",
            reference_reset_steps=400,
            drop_equal_groups=False,
        ),
        # V3.2 3.1: unbiased KL, ratio to the sampler itself, bad answers that have drifted away left out; clip range,
        # KL weight and limit are not published: PPO's, R1's, and a choice of Fathom's
        ObjectiveConfig(
            name="v3.2",
            clip_high=0.2,
            aggregation="sequence",
            old_policy="sampler",
            kl_beta=1e-3,
            stale_limit=0.1,
            drop_equal_groups=False,
        ),
        # neither the length of an answer nor the spread of its group weighs it (Dr. GRPO 3.2)
        ObjectiveConfig(name="dr_grpo", clip_high=0.2, aggregation="constant", drop_equal_groups=False),
        # clip-higher, dynamic sampling, token-level loss, overlong filter and soft penalty (DAPO 3): 4,096 of 20,480
        ObjectiveConfig(name="dapo", advantage="mean_std", mask_truncated=True, overlong_share=0.2),
        # one ratio per answer in a range a thousandth as wide (GSPO 5)
        ObjectiveConfig(
            name="gspo",
            advantage="mean_std",
            surrogate="sequence",
            clip_low=3e-4,
            clip_high=4e-4,
            aggregation="sequence",
            drop_equal_groups=False,
        ),
        # the weight of a token is clipped, never its gradient; no lower end (MiniMax-M1 3.1, which publishes no upper
        # one either: DAPO's stands here)
        ObjectiveConfig(name="cispo", advantage="mean_std", surrogate="weight", clip_low=1.0),
        # what TinyZero's script runs: a critic, KL in the reward, an entropy bonus; with grpo.group=1, grpo.updates=4
        ObjectiveConfig(
            name="ppo",
            advantage="gae",
            clip_high=0.2,
            kl_beta=1e-3,
            kl_estimator="k1",
            kl_in="reward",
            reference_reset_steps=0,
            drop_equal_groups=False,
            entropy_weight=1e-3,
        ),
    )
}


def named_objective(name: str) -> ObjectiveConfig:
    """The objective of that name; raises ValueError with the nearest one for any other."""
    if name not in OBJECTIVES:
        near = get_close_matches(name, OBJECTIVES, n=1, cutoff=0.4)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise ValueError(f"objective {name!r} is unknown{hint}; choose one of {', '.join(OBJECTIVES)}")
    return OBJECTIVES[name]
