"""What a run costs: operations over a share of the peak are hours, and hours are dollars and energy.

The sum is that of the final run alone, as in the famous $5.576M of V3: no research, no ablations, no failed runs, no
data, no staff.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import isclose

from fathom.config import Config, ModelConfig, TrainConfig
from fathom.plan.count import train_flops_per_token
from fathom.plan.hardware import HARDWARE, Devices, Hardware
from fathom.plan.serving import Server, serving_dtype
from fathom.presets import PRESETS

EXCLUDED = (
    "research, ablations and failed runs",
    "data, staff, storage and network",
    "power beyond the devices' own: hosts and cooling",
)


@dataclass(frozen=True, kw_only=True)
class Line:
    """One stage on the bill; `included` says whether the sum counts it."""

    name: str
    tokens: float | None = None
    hours: float  # by the clock, all devices at work
    gpu_hours: float
    dollars: float
    energy_kwh: float  # at the devices' power limit
    included: bool = True
    note: str = ""


def bill(
    name: str, gpu_hours: float, devices: Devices, tokens: float | None = None, included: bool = True, note: str = ""
) -> Line:
    """The line of a stage that keeps one device busy for so many hours, or all of them for their share of it."""
    hardware = devices.hardware
    return Line(
        name=name,
        tokens=tokens,
        hours=gpu_hours / devices.count,
        gpu_hours=gpu_hours,
        dollars=gpu_hours * hardware.dollars_per_hour,
        energy_kwh=gpu_hours * hardware.watts / 1000,
        included=included,
        note=note,
    )


def total(lines: list[Line]) -> Line:
    """The sum of what is included."""
    counted = [line for line in lines if line.included]
    return Line(
        name="total",
        hours=sum(line.hours for line in counted),
        gpu_hours=sum(line.gpu_hours for line in counted),
        dollars=sum(line.dollars for line in counted),
        energy_kwh=sum(line.energy_kwh for line in counted),
    )


# ---- from operations to hours ---------------------------------------------------------------------------------------


def gpu_hours(flops: float, hardware: Hardware, mfu: float) -> float:
    """Hours of one device for so many operations at a share of its peak."""
    return flops / (hardware.peak_flops * mfu * 3600)


def fitted_mfu(flops: float, gpu_hours: float, hardware: Hardware) -> float:
    """The share of the peak at which so many operations took so many hours of one device."""
    return flops / (hardware.peak_flops * gpu_hours * 3600)


def affordable_tokens(gpu_hours: float, flops_per_token: float, hardware: Hardware, mfu: float) -> float:
    """Tokens that so many hours of one device train."""
    return gpu_hours * 3600 * hardware.peak_flops * mfu / flops_per_token


def train_tokens(train: TrainConfig) -> float:
    """Tokens of a stage, its growing batch included."""
    if train == PRESETS["v3"].pretrain:
        return V3_TOKENS  # from which its steps are derived, and rounded
    missing = train.schedule.batch_ramp * (1 - train.schedule.batch_start) / 2  # share of rows lost to the ramp
    return train.steps * train.batch_rows * train.seq_len * (1 - missing)


# ---- what is known to have been spent -------------------------------------------------------------------------------

V3_TOKENS = 14.8e12
V3_GPU_HOURS = {"pretraining": 2_664e3, "context extension": 119e3, "post-training": 5e3}  # H800; V3 Table 1
R1_GPU_HOURS = {"R1-Zero": 101e3, "R1's fine-tuning data": 5e3, "R1": 41e3}  # H800, on top of V3-Base; R1 Table 7
V3_PHASE_TOKENS = 1000 * 15_360 * 4096  # in each of two phases, at 32K and 128K; V3 4.3
# pretraining and cold start in docs/results/2026-11-23-laptop-copying.md, counted as plans count: MTP in every step
LAPTOP_FLOPS, LAPTOP_SECONDS = 8.557e12, 143.7
ORDINARY_MFU = 0.30  # of the fastest library measured on one H200, with a mixture of experts of 817 M parameters


def is_v3(model: ModelConfig) -> bool:
    """Whether the published spending is this model's own."""
    return model == PRESETS["v3"].model


def v3_mfu() -> float:
    """Fitted to V3's own pretraining, MTP's operations counted: 40.7 %, or 39.1 % if they are not, as V3 reports it."""
    flops = V3_TOKENS * train_flops_per_token(PRESETS["v3"].model, 4096)
    return fitted_mfu(flops, V3_GPU_HOURS["pretraining"], HARDWARE["h800"])


def known_mfu(model: ModelConfig, hardware: Hardware) -> tuple[float, str] | None:
    """The share of the peak that such a run has reached, and which run that was; None where there was none."""
    if is_v3(model) and hardware.name == "H800":
        return v3_mfu(), "fitted to V3's own 2,664K GPU-hours"
    if not hardware.bf16_flops:
        return fitted_mfu(LAPTOP_FLOPS, LAPTOP_SECONDS / 3600, hardware), "fitted to the laptop run in docs/results"
    return None


# ---- the stages of a config -----------------------------------------------------------------------------------------


def cost_lines(config: Config, devices: Devices, mfu: float, tokens: float | None = None) -> list[Line]:
    """Every stage of a config, in order; `tokens` replaces those of its pretraining.

    After pretraining, V3 has the stages that its authors paid for; other models have those that the config describes.
    """
    lines = [training("pretraining", config.pretrain, config.model, devices, mfu, tokens)]
    if is_v3(config.model):
        return lines + list(published_lines(devices, mfu))
    if config.model.rope.scaling == "yarn":
        lines.append(context_extension(config, devices, mfu))
    if config.cold_start:
        lines.append(training("fine-tuning", config.sft, config.model, devices, mfu))
    return lines + reinforcement(config, devices, mfu)


def training(
    name: str, train: TrainConfig, model: ModelConfig, devices: Devices, mfu: float, tokens: float | None = None
) -> Line:
    """A stage of next-token training."""
    tokens = train_tokens(train) if tokens is None else tokens
    flops = tokens * train_flops_per_token(model, train.seq_len)
    return bill(name, gpu_hours(flops, devices.hardware, mfu), devices, tokens)


def context_extension(config: Config, devices: Devices, mfu: float) -> Line:
    """Two phases of 1,000 steps at 32K and 128K tokens a row, each step as many tokens as in pretraining (V3 4.3)."""
    phase = 1000 * config.pretrain.batch_rows * config.pretrain.seq_len
    flops = sum(phase * train_flops_per_token(config.model, length) for length in (2**15, 2**17))
    hours = gpu_hours(flops, devices.hardware, mfu)
    return bill("context extension", hours, devices, 2 * phase, note="to 128K in two phases, as V3's")


def published_lines(devices: Devices, mfu: float) -> Iterator[Line]:
    """V3's later stages, and R1 on top of it; on other devices as many operations at their own share of the peak."""
    h800 = HARDWARE["h800"]
    scale = h800.peak_flops * v3_mfu() / (devices.hardware.peak_flops * mfu)
    tokens, origin = {"context extension": 2 * V3_PHASE_TOKENS}, "as" if isclose(scale, 1) else "scaled from what was"
    for name in ("context extension", "post-training"):
        yield bill(name, scale * V3_GPU_HOURS[name], devices, tokens.get(name), note=f"{origin} published (V3 table 1)")
    for name, hours in R1_GPU_HOURS.items():
        yield bill(name, scale * hours, devices, included=False, note=f"{origin} published (R1 table 7)")


# ---- reinforcement learning -----------------------------------------------------------------------------------------

ENGINE_SHARE = 0.5  # of the ceiling that a good engine reaches with a large batch; UNCONFIRMED
VERIFIER_SECONDS = 1e-3  # to check one answer by rule; running its code takes a thousand times as long


def reinforcement(config: Config, devices: Devices, mfu: float) -> list[Line]:
    """Sampling, checking and learning from as many answers as the config asks for, all at their longest."""
    g, hardware = config.grpo, devices.hardware
    answers, length = g.steps * g.prompts * g.group, g.sampling.max_tokens
    tokens = answers * length
    flops = tokens * train_flops_per_token(config.model, length, mtp=g.mtp_weight > 0)
    passes = 1 + (g.objective.kl_beta > 0) / 3  # a reference model adds its forward pass
    checking = f"{answers:,} answers at 1 ms: {answers * VERIFIER_SECONDS / 3600:.2g} CPU-hours, beside the devices"
    return [
        rollouts(config, devices, tokens),
        bill("RL verifier", 0, devices, note=checking),
        bill(
            "RL updates", gpu_hours(flops * passes, hardware, mfu), devices, tokens, note="at most, on as many tokens"
        ),
    ]


def rollouts(config: Config, devices: Devices, tokens: float) -> Line:
    """Sampling of the answers, at half the ceiling of generation."""
    g = config.grpo
    server = Server(model=config.model, devices=devices, dtype=serving_dtype(devices.hardware))
    rows = min(g.prompts * g.group, server.sequences(g.sampling.max_tokens))
    if rows == 0:
        note = "not counted: the weights do not fit these devices"
        return bill("RL rollouts", 0, devices, tokens, included=False, note=note)
    seconds = tokens / (ENGINE_SHARE * server.tokens_per_s(rows, g.sampling.max_tokens // 2))
    note = f"at most: every answer {g.sampling.max_tokens:,} tokens long; at half the ceiling of generation"
    return bill("RL rollouts", seconds / 3600 * devices.count, devices, tokens, note=note)
