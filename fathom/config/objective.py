"""What reinforcement learning maximises: advantage, ratio, clip, denominator, KL, off-policy correction."""

from dataclasses import dataclass
from math import isfinite
from typing import Literal, get_args

from fathom.config.checks import require_choice, require_positive, require_unit_interval

Name = Literal["default", "grpo_deepseekmath", "r1", "v3.2", "dr_grpo", "dapo", "gspo", "cispo", "ppo"]
Advantage = Literal["mean", "mean_std", "gae"]
Surrogate = Literal["token", "sequence", "weight"]
Aggregation = Literal["token", "sequence", "constant"]
Estimator = Literal["k1", "k2", "k3_weighted", "k3"]
OldPolicy = Literal["trainer", "sampler"]
KLPlace = Literal["loss", "reward"]
Correction = Literal["none", "truncate", "mask"]
Level = Literal["token", "sequence"]


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """The policy-gradient family; `config.objectives` has its published members by name."""

    name: Name = "default"  # where the values started
    # baseline of the group (Dr. GRPO, V3.2), DeepSeekMath's z-score, or a critic's values (PPO, GAE)
    advantage: Advantage = "mean"
    # the ratio of each token, clipped (PPO); of the whole answer (GSPO 4.2); or a clipped, detached weight (CISPO)
    surrogate: Surrogate = "token"
    clip_low: float = 0.2
    clip_high: float = 0.28  # above clip_low keeps rare tokens alive (DAPO)
    clip_dual: float = 0.0  # cap on the ratio where the advantage is negative; 0 sets none
    aggregation: Aggregation = "token"  # global tokens; mean per answer; answers * max_tokens
    old_policy: OldPolicy = "trainer"  # the ratio's denominator: recomputed by the trainer, or as sampled (V3.2 3.1)
    kl_beta: float = 0.0  # 0 loads no reference model
    kl_estimator: Estimator = "k3_weighted"
    kl_in: KLPlace = "loss"  # or taken off every token's reward, which needs advantage=gae (PPO)
    reference_reset_steps: int = 400  # optimizer steps after which the reference becomes the policy (R1); 0 never
    drop_equal_groups: bool = True  # groups whose rewards are exactly equal teach nothing (DAPO)
    mask_truncated: bool = False  # no loss on answers cut by length; they stay in the baseline (DAPO)
    overlong_share: float = 0.0  # last share of max_tokens over which an answer's reward falls by 1 (DAPO); 0 none
    # weight of the policy term for a sampler that computes otherwise (TIS): cap it, or drop what exceeds the cap
    correction: Correction = "none"
    correction_level: Level = "token"  # of each token, or the product over the answer
    correction_cap: float = 2.0  # TIS, its authors' GSM8K runs
    stale_limit: float = 0.0  # nats per token by which a bad answer may have become rarer (V3.2 3.1); 0 keeps all
    entropy_weight: float = 0.0  # of the mean entropy, added to what is maximised

    def __post_init__(self) -> None:
        self._check_values()
        self._check_mixes()

    def _check_values(self) -> None:
        choices = {
            "name": Name,
            "advantage": Advantage,
            "surrogate": Surrogate,
            "aggregation": Aggregation,
            "old_policy": OldPolicy,
            "kl_estimator": Estimator,
            "kl_in": KLPlace,
            "correction": Correction,
            "correction_level": Level,
        }
        for field, allowed in choices.items():
            require_choice("objective", field, getattr(self, field), get_args(allowed))
        require_positive("objective", clip_low=self.clip_low, clip_high=self.clip_high)
        require_unit_interval("objective", overlong_share=self.overlong_share)
        for field in ("kl_beta", "clip_dual", "reference_reset_steps", "stale_limit", "entropy_weight"):
            if not (value := getattr(self, field)) >= 0 or not isfinite(value):
                raise ValueError(f"objective.{field}={value} is no finite number of at least 0; 0 switches it off")
        if self.correction_cap < 1:
            raise ValueError(
                f"objective.correction_cap={self.correction_cap} would weaken tokens on which sampler and trainer "
                "agree; use 1 or more (2 to 3 is customary)"
            )

    def _check_mixes(self) -> None:
        """Refuse what contradicts itself or would be counted twice."""
        if 0 < self.clip_dual <= 1:
            raise ValueError(
                f"objective.clip_dual={self.clip_dual} caps ratios at or below 1, where every update starts; "
                "use a value above 1 (3 is customary) or 0 for none"
            )
        if self.clip_dual and self.surrogate == "weight":
            raise ValueError(
                f"objective.clip_dual={self.clip_dual} has no ratio to cap under surrogate=weight, which clips the "
                "weight of good and bad tokens alike; set clip_dual=0"
            )
        if self.surrogate == "sequence" and self.aggregation != "sequence":
            raise ValueError(
                f"objective.aggregation={self.aggregation} would weigh surrogate=sequence, one ratio per answer, by "
                "the answers' lengths; set aggregation=sequence"
            )
        if self.surrogate == "sequence" and self.advantage == "gae":
            raise ValueError(
                "objective.surrogate=sequence has one ratio for all tokens of an answer, while advantage=gae differs "
                "from token to token; use surrogate=token or a group baseline"
            )
        if self.correction != "none":
            self._check_correction()
        if self.kl_beta and self.kl_in == "loss" and self.kl_estimator == "k1":
            raise ValueError(
                "objective.kl_estimator=k1 has no gradient in expectation when it stands in the loss; choose "
                "k2, k3_weighted or k3, or kl_in=reward"
            )
        if self.kl_in == "reward" and self.kl_estimator == "k3_weighted":
            raise ValueError(
                "objective.kl_estimator=k3_weighted corrects a gradient, and a KL in the reward has none; choose k1"
            )
        if self.kl_in == "reward" and self.advantage != "gae":
            raise ValueError(
                f"objective.kl_in=reward pays every token apart, which advantage={self.advantage}, one number per "
                "answer, cannot hold; use kl_in=loss or advantage=gae"
            )
        if self.advantage == "gae" and self.drop_equal_groups:
            raise ValueError(
                "objective.drop_equal_groups drops answers that a group cannot compare, but advantage=gae compares "
                "with a critic and learns from all; set drop_equal_groups=False"
            )

    def _check_correction(self) -> None:
        if self.old_policy == "sampler":
            raise ValueError(
                f"objective.correction={self.correction} and old_policy=sampler both correct for the sampler, which "
                "would count the gap twice; set one of them to its default"
            )
        if self.surrogate == "sequence" and self.correction_level == "token":
            raise ValueError(
                "objective.correction_level=token weighs the tokens of an answer apart, which surrogate=sequence takes "
                "as one; set correction_level=sequence"
            )
