"""What follows GRPO in R1: rejection sampling, a second tuning from the base, RL on all scenarios, distillation."""

from dataclasses import dataclass, field

from fathom.config.checks import require_positive, require_unit_interval
from fathom.config.model import AttentionConfig, ModelConfig, MoEConfig
from fathom.config.rl import GRPOConfig
from fathom.config.train import OptimizerConfig, ScheduleConfig, TrainConfig


@dataclass(frozen=True, kw_only=True)
class RejectConfig:
    """Rejection sampling: of many answers to training problems the right, readable ones are kept (R1 2.3.3)."""

    problems: int = 1000
    samples: int = 4  # answers drawn to each
    keep: int = 2  # of them at most kept, all different
    temperature: float = 1.0
    least_language: float = 0.9  # share of the thinking's words in the target language

    def __post_init__(self) -> None:
        require_positive("r1.reject", problems=self.problems, samples=self.samples, keep=self.keep)
        require_positive("r1.reject", temperature=self.temperature)
        require_unit_interval("r1.reject", least_language=self.least_language)


@dataclass(frozen=True, kw_only=True)
class PreferenceConfig:
    """A small reward model for what no rule checks, trained on pairs of answers, one of them preferred (R1 2.3.4)."""

    file: str = ""  # JSONL of prompt, chosen, rejected; without one, made-up pairs
    pairs: int = 2000  # made up
    held_out_share: float = 0.1  # of the prompts, by hash, for the model's accuracy
    steps: int = 100
    rows: int = 32  # pairs of a step (R1: 256)
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(lr=1e-3, weight_decay=0.0))

    def __post_init__(self) -> None:
        require_positive("r1.preference", pairs=self.pairs, steps=self.steps, rows=self.rows)
        require_unit_interval("r1.preference", held_out_share=self.held_out_share)


@dataclass(frozen=True, kw_only=True)
class R1Config:
    """R1's stages behind its first reinforcement (R1 2.3.3, 2.3.4, 2.4)."""

    enabled: bool = False
    reject: RejectConfig = field(default_factory=RejectConfig)
    general_file: str = ""  # JSONL of prompt and response to tune on; without one, made-up small talk
    general_share: float = 0.25  # of the second tuning's dialogues (R1: 200 of 800 thousand)
    tune: TrainConfig = field(default_factory=TrainConfig)  # from the base, on what was kept and general dialogues
    preference: PreferenceConfig = field(default_factory=PreferenceConfig)
    rl: GRPOConfig = field(default_factory=GRPOConfig)  # rule-checked rewards alone
    preference_steps: int = 60  # last steps of it, which the reward model joins (R1: 400 of 1,700)
    preference_share: float = 0.25  # of the questions of those steps
    # the model that is taught: pretrained on the same text, tuned on what was kept
    student: ModelConfig = field(
        default_factory=lambda: ModelConfig(
            model_type="llama",
            attention=AttentionConfig(kind="gqa"),
            moe=MoEConfig(n_routed_experts=0),
            num_nextn_predict_layers=0,
        )
    )
    student_pretrain: TrainConfig = field(default_factory=TrainConfig)
    distill: TrainConfig = field(
        default_factory=lambda: TrainConfig(schedule=ScheduleConfig(decay="cosine", final_lr=0.1, mtp_weight=0.0))
    )

    def __post_init__(self) -> None:
        require_unit_interval("r1", general_share=self.general_share, preference_share=self.preference_share)
        if not 0 <= self.preference_steps <= self.rl.steps:
            raise ValueError(
                f"r1.preference_steps={self.preference_steps} is not within the {self.rl.steps} steps of r1.rl; give "
                "at most as many, or 0 for no reward model"
            )
