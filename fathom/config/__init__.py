"""Every knob of Fathom: frozen dataclasses, validated where they are born. Imports no torch."""

from dataclasses import dataclass, field
from typing import Literal

from fathom.config.checks import require_choice, require_positive
from fathom.config.lora import LoRAConfig
from fathom.config.model import AttentionConfig, ModelConfig, MoEConfig, RopeConfig
from fathom.config.objective import ObjectiveConfig
from fathom.config.parallel import ParallelConfig
from fathom.config.r1 import R1Config
from fathom.config.resilience import ResilienceConfig
from fathom.config.rl import CriticConfig, GRPOConfig, RewardConfig
from fathom.config.sampling import SamplingConfig
from fathom.config.task import TaskConfig
from fathom.config.text import TextConfig
from fathom.config.train import OptimizerConfig, ScheduleConfig, TrainConfig

__all__ = [
    "AttentionConfig",
    "Config",
    "CriticConfig",
    "EvalConfig",
    "GRPOConfig",
    "LoRAConfig",
    "MoEConfig",
    "ModelConfig",
    "ObjectiveConfig",
    "OptimizerConfig",
    "ParallelConfig",
    "R1Config",
    "ResilienceConfig",
    "RewardConfig",
    "RopeConfig",
    "SamplingConfig",
    "ScheduleConfig",
    "TaskConfig",
    "TextConfig",
    "TrainConfig",
]


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """Evaluation on held-out problems."""

    problems: int = 500
    samples: int = 2  # sampled answers per problem, beside one greedy answer
    rows: int = 256  # sequences decoded together
    k: tuple[int, ...] = ()  # report pass@k and the majority vote of k answers for these k, each at most samples

    def __post_init__(self) -> None:
        require_positive("eval", problems=self.problems, samples=self.samples, rows=self.rows)
        for k in self.k:
            require_positive("eval", k=k)


@dataclass(frozen=True, kw_only=True)
class Config:
    """One frozen config for every verb; each verb reads the sections it needs."""

    preset: str = "laptop"  # where the values started
    seed: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"  # compute precision; auto is float32 on a CPU
    workers: int = 2  # processes on this machine, one thread each, where it computes on its CPU
    gpu_workers: int = 1  # processes on this machine, one a GPU; several (over NCCL) have not been run
    cold_start: bool = True  # supervised fine-tuning on worked solutions before GRPO; False is R1-Zero (R1 2.2)
    init: str = ""  # checkpoint directory to start from instead of fresh weights, imported or of another run
    dollars_per_hour: float = 0.10  # price of this machine, for the report's cost
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    resilience: ResilienceConfig = field(default_factory=ResilienceConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    lora: LoRAConfig = field(default_factory=LoRAConfig)
    text: TextConfig = field(default_factory=TextConfig)
    task: TaskConfig = field(default_factory=TaskConfig)
    pretrain: TrainConfig = field(default_factory=TrainConfig)
    sft: TrainConfig = field(default_factory=TrainConfig)
    grpo: GRPOConfig = field(default_factory=GRPOConfig)
    sft_control: TrainConfig = field(default_factory=TrainConfig)  # SFT alone for as much compute as GRPO took
    eval: EvalConfig = field(default_factory=EvalConfig)
    r1: R1Config = field(default_factory=R1Config)

    def __post_init__(self) -> None:
        require_choice("config", "device", self.device, ("auto", "cpu", "cuda"))
        require_choice("config", "dtype", self.dtype, ("auto", "float32", "bfloat16"))
        require_positive("config", workers=self.workers, gpu_workers=self.gpu_workers)
