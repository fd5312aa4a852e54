"""Training: how many steps of how many tokens, at which rates, kept where."""

from dataclasses import dataclass, field
from typing import Literal

from fathom.config.checks import require_choice, require_positive, require_unit_interval


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW as V3 trains it (V3 4.2)."""

    lr: float = 4e-3  # peak learning rate
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8  # not published
    weight_decay: float = 0.1
    clip_norm: float = 1.0  # gradients are scaled down to this global norm; 0 leaves them
    moments: Literal["float32", "bfloat16"] = "float32"  # storage of both moments (V3 3.3.3 uses bfloat16)
    ema_decay: float = 0.0  # moving average of the weights; 0 keeps none

    def __post_init__(self) -> None:
        require_choice("optimizer", "moments", self.moments, ("float32", "bfloat16"))
        require_positive("optimizer", lr=self.lr, eps=self.eps)
        require_unit_interval("optimizer", beta1=self.beta1, beta2=self.beta2, ema_decay=self.ema_decay)


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """Rates as functions of the step, in shares of the stage (V3 4.2)."""

    warmup_steps: int = 50
    decay: Literal["constant", "linear", "cosine", "v3"] = "linear"
    decay_start: float = 0.0  # share of the steps before the decay begins (V3: 10 of 14.8 T tokens)
    final_lr: float = 0.05  # last learning rate as a share of the peak
    batch_ramp: float = 0.0  # share of the steps over which the batch grows to its full size (V3: 469 of 14,800 B)
    batch_start: float = 1.0  # first batch as a share of the full one (V3: 3072 / 15360)
    mtp_weight: float = 0.3  # lambda of the MTP loss (V3 4.2)
    mtp_weight_final: float = 0.1  # lambda after `mtp_switch`
    mtp_switch: float = 0.67  # share of the steps trained at the first lambda (V3: 10 of 14.8 T)
    bias_freeze: float = 0.96  # share of the steps after which the selection bias stands still (V3: 14.3 of 14.8 T)

    def __post_init__(self) -> None:
        require_choice("schedule", "decay", self.decay, ("constant", "linear", "cosine", "v3"))
        require_unit_interval(
            "schedule",
            decay_start=self.decay_start,
            final_lr=self.final_lr,
            batch_ramp=self.batch_ramp,
            batch_start=self.batch_start,
            mtp_switch=self.mtp_switch,
            bias_freeze=self.bias_freeze,
        )


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One stage of next-token training: pretraining or supervised fine-tuning."""

    steps: int = 200
    batch_rows: int = 64  # sequences per optimizer step over all workers
    micro_batch_rows: int = 64  # sequences per forward pass of one worker
    seq_len: int = 128  # tokens per row; documents are packed (pretrain) or padded (SFT) into it
    save_every: int = 50  # steps between checkpoints
    keep_checkpoints: int = 2
    validate_every: int = 50  # steps between validation losses; 0 never
    precision: Literal["plain", "fp8"] = "plain"  # inputs of products: as `dtype` says, or e4m3 codes (V3 3.3)
    after_attention: Literal["bfloat16", "e5m6", "e4m3"] = "bfloat16"  # what FP8 keeps of that input (V3: e5m6)
    compile: Literal["auto", "on", "off"] = "auto"  # element-wise parts of layers as kernels of torch.compile; on GPUs
    fp8_check_every: int = 0  # steps between comparisons of FP8 gradients with those without; 0 never
    fp8_least_cosine: float = 0.9  # between the two, below which a layer or its weight's gradient goes without FP8
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)

    def __post_init__(self) -> None:
        require_unit_interval("train", fp8_least_cosine=self.fp8_least_cosine)
        require_choice("train", "precision", self.precision, ("plain", "fp8"))
        require_choice("train", "compile", self.compile, ("auto", "on", "off"))
        require_choice("train", "after_attention", self.after_attention, ("bfloat16", "e5m6", "e4m3"))
        require_positive(
            "train",
            steps=self.steps,
            batch_rows=self.batch_rows,
            micro_batch_rows=self.micro_batch_rows,
            seq_len=self.seq_len,
            save_every=self.save_every,
            keep_checkpoints=self.keep_checkpoints,
        )
