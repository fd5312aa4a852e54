"""Reinforcement learning from rule-checked rewards (R1)."""

from dataclasses import dataclass, field
from typing import Literal

from fathom.config.checks import require_choice, require_positive
from fathom.config.sampling import SamplingConfig
from fathom.config.train import OptimizerConfig, ScheduleConfig


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """The GRPO family: what an advantage is, what is clipped, what is divided by what."""

    advantage: Literal["mean", "mean_std"] = "mean"  # baseline only (Dr. GRPO, V3.2) or DeepSeekMath's z-score
    clip_low: float = 0.2
    clip_high: float = 0.28  # above clip_low keeps rare tokens alive (DAPO)
    clip_dual: float = 0.0  # cap on the ratio where the advantage is negative; 0 sets none
    aggregation: Literal["token", "sequence", "constant"] = (
        "token"  # global tokens; mean per answer; answers * max_tokens
    )
    kl_beta: float = 0.0  # 0 loads no reference model
    kl_estimator: Literal["k2", "k3_weighted", "k3"] = "k3_weighted"
    reference_reset_steps: int = 400  # the reference becomes the current policy (R1); 0 never
    drop_equal_groups: bool = True  # groups whose rewards are exactly equal teach nothing (DAPO)
    mask_truncated: bool = False  # no loss on answers cut by length; they stay in the baseline (DAPO)

    def __post_init__(self) -> None:
        require_choice("objective", "advantage", self.advantage, ("mean", "mean_std"))
        require_choice("objective", "aggregation", self.aggregation, ("token", "sequence", "constant"))
        require_choice("objective", "kl_estimator", self.kl_estimator, ("k2", "k3_weighted", "k3"))
        require_positive("objective", clip_low=self.clip_low, clip_high=self.clip_high)
        if self.kl_beta < 0 or self.clip_dual < 0:
            raise ValueError("objective.kl_beta and objective.clip_dual must not be negative; 0 switches them off")


@dataclass(frozen=True, kw_only=True)
class RewardConfig:
    """Rewards by rule: accuracy + format + language consistency (R1 2.2, 2.3), and soundness of the thinking."""

    accuracy: float = 1.0
    format: float = 0.1
    language: float = 0.0  # weight of the share of target-language words in the thinking
    soundness: float = 0.0  # weight of the share of tries in the thinking that are legal and add up; not in R1


@dataclass(frozen=True, kw_only=True)
class GRPOConfig:
    """Group relative policy optimisation on one task."""

    steps: int = 300
    prompts: int = 16  # questions per step over all workers
    group: int = 16  # answers per question
    refill_rounds: int = 1  # extra sampling rounds that replace dropped groups
    updates: int = 1  # optimizer steps per batch of answers
    micro_batch_rows: int = 256
    mtp_weight: float = 0.0  # trains the MTP module along, its loss kept out of the trunk
    save_every: int = 50
    keep_checkpoints: int = 2
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(lr=5e-4, weight_decay=0.0))
    schedule: ScheduleConfig = field(default_factory=lambda: ScheduleConfig(warmup_steps=5, decay="constant"))

    def __post_init__(self) -> None:
        require_positive(
            "grpo",
            steps=self.steps,
            prompts=self.prompts,
            updates=self.updates,
            micro_batch_rows=self.micro_batch_rows,
            save_every=self.save_every,
            keep_checkpoints=self.keep_checkpoints,
        )
        if self.group < 2:
            raise ValueError(f"grpo.group={self.group} leaves nothing to compare an answer with; use 2 or more")
        if self.sampling.temperature == 0:
            raise ValueError("grpo.sampling.temperature=0 draws equal answers in every group; use a positive one")
        if self.sampling.truncates or self.sampling.penalises or self.sampling.min_tokens:
            raise ValueError(
                f"grpo.sampling={self.sampling} rules tokens out or changes their odds, while the loss counts the "
                "model's own law; set top_p=1, top_k=0, min_p=0, no penalties and min_tokens=0"
            )
