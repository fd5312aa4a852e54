"""Reinforcement learning from rule-checked rewards (R1)."""

from dataclasses import dataclass, field
from math import inf, isfinite
from typing import Literal

from fathom.config.checks import require_choice, require_positive, require_unit_interval
from fathom.config.objective import ObjectiveConfig
from fathom.config.sampling import SamplingConfig
from fathom.config.train import OptimizerConfig, ScheduleConfig

LEAST_PLATEAU = 10  # steps of which a slope has an interval worth its name


@dataclass(frozen=True, kw_only=True)
class RewardConfig:
    """Rewards by rule: accuracy + format + language consistency (R1 2.2, 2.3), and soundness of the thinking."""

    accuracy: float = 1.0
    format: float = 0.1
    language: float = 0.0  # weight of the share of target-language words in the thinking
    soundness: float = 0.0  # weight of the share of tries in the thinking that are legal and add up; not in R1

    def __post_init__(self) -> None:
        weights = vars(self)
        for name, weight in weights.items():
            if not isfinite(weight):
                raise ValueError(f"grpo.reward.{name}={weight} is no finite number; give the weight of that part")
        if not any(weights.values()):
            raise ValueError("grpo.reward gives every part the weight 0, so all answers earn the same; set one above 0")


@dataclass(frozen=True, kw_only=True)
class CriticConfig:
    """The values that PPO compares with; used where objective.advantage=gae (PPO, GAE)."""

    optimizer: OptimizerConfig = field(  # TinyZero: ten times the policy's rate
        default_factory=lambda: OptimizerConfig(lr=1e-5, weight_decay=0.0)
    )
    gamma: float = 1.0  # discount of a reward one token later
    gae_lambda: float = 1.0  # 1 trusts the sampled rewards alone, 0 the critic's next value
    value_clip: float = 0.5  # how far a value may move from what it was when the answers were sampled; 0 any distance

    def __post_init__(self) -> None:
        require_unit_interval("grpo.critic", gamma=self.gamma, gae_lambda=self.gae_lambda)
        if self.value_clip < 0:
            raise ValueError(f"grpo.critic.value_clip={self.value_clip} is negative; 0 switches it off")


@dataclass(frozen=True, kw_only=True)
class GRPOConfig:
    """Policy optimisation on one task: groups of answers compared with one another, or each with a critic."""

    steps: int = 300
    prompts: int = 16  # questions per step over all workers
    group: int = 16  # answers per question
    refill_rounds: int = 1  # extra sampling rounds that replace dropped groups
    updates: int = 1  # optimizer steps per batch of answers
    micro_batch_rows: int = 256
    finish_share: float = 1.0  # of a round's answers: once so many are finished the rest counts as truncated; 1 waits
    graders: int = 1  # threads that grade beside the sampling; more where every check waits for a child process
    drafts: Literal["off", "auto"] = "off"  # MTP drafts while sampling: auto where they measure faster
    replay_routing: bool = False  # training sends tokens to the experts that the sampler chose (R3; V3.2 3.1)
    exact_sampling: bool = False  # log-probabilities at sampling are those of the training forward: a pass more a step
    budget_dollars: float = 0.0  # the stage ends before it costs more, at the config's dollars_per_hour; 0 sets none
    plateau_steps: int = 100  # with a budget: it ends, too, where accuracy rose by less than plateau_gain over these
    plateau_gain: float = 0.02  # share; the upper end of the rise's 95 % interval is held against it
    held_out_every: int = 0  # steps between two measurements of held-out accuracy; 0 makes none
    held_out_questions: int = 64  # answered once each, always the same: no training problem is among them
    mtp_weight: float = 0.0  # trains the MTP module along, its loss kept out of the trunk
    save_every: int = 50
    keep_checkpoints: int = 2
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    critic: CriticConfig = field(default_factory=CriticConfig)
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
            finish_share=self.finish_share,
            graders=self.graders,
            plateau_gain=self.plateau_gain,
            held_out_questions=self.held_out_questions,
        )
        if self.held_out_every < 0:
            raise ValueError(
                f"grpo.held_out_every={self.held_out_every} is no number of steps; give one, or 0 to measure nothing"
            )
        require_unit_interval("grpo", finish_share=self.finish_share)
        require_choice("grpo", "drafts", self.drafts, ("off", "auto"))
        if not 0 <= self.budget_dollars < inf:
            raise ValueError(f"grpo.budget_dollars={self.budget_dollars} is no sum; give dollars, or 0 for no limit")
        if self.plateau_steps < LEAST_PLATEAU:
            raise ValueError(
                f"grpo.plateau_steps={self.plateau_steps} are too few to tell a plateau from noise; "
                f"give {LEAST_PLATEAU} or more"
            )
        if self.finish_share < 1 and self.drafts == "auto":
            raise ValueError(
                f"grpo.finish_share={self.finish_share} cuts answers by their steps, which grpo.drafts=auto makes "
                "depend on the speed of the machine, so that no run could be repeated; choose one of the two"
            )
        if self.group < 1:
            raise ValueError(f"grpo.group={self.group} asks for no answer; use 1 or more")
        if self.group < 2 and self.objective.advantage != "gae":
            raise ValueError(
                f"grpo.group={self.group} leaves nothing to compare an answer with; use 2 or more, or "
                "objective.advantage=gae"
            )
        if self.sampling.temperature == 0:
            raise ValueError("grpo.sampling.temperature=0 draws equal answers in every group; use a positive one")
        if self.sampling.truncates or self.sampling.penalises or self.sampling.min_tokens:
            raise ValueError(
                f"grpo.sampling={self.sampling} rules tokens out or changes their odds, while the loss counts the "
                "model's own law; set top_p=1, top_k=0, min_p=0, no penalties and min_tokens=0"
            )
        if self.objective.clip_dual and self.updates == 1 and self.objective.old_policy == "trainer":
            raise ValueError(
                f"objective.clip_dual={self.objective.clip_dual} caps a ratio that grpo.updates=1 holds at exactly 1; "
                "raise grpo.updates or set clip_dual=0"
            )
