"""Rates as pure functions of the step (V3 4.2)."""

import math

from fathom.config import ScheduleConfig

# V3's run, in trillions of its 14.8 T tokens: constant, cosine to a tenth, constant, a last small constant
V3_TOTAL, V3_CONSTANT, V3_COSINE, V3_TENTH = 14.8, 10.0, 14.3, 14.633
V3_LAST = 7.3e-6 / 2.2e-4


def learning_rate(schedule: ScheduleConfig, peak: float, step: int, steps: int) -> float:
    """The learning rate of 0-based step `step` of `steps`; warm-up is linear and reaches the peak at its end."""
    if step < schedule.warmup_steps:
        return peak * (step + 1) / schedule.warmup_steps
    share = step / max(1, steps)
    match schedule.decay:
        case "constant":
            return peak
        case "v3":
            return peak * v3_decay(share * V3_TOTAL)
        case "linear" | "cosine":
            start = max(schedule.decay_start, schedule.warmup_steps / max(1, steps))
            done = min(1.0, max(0.0, (share - start) / max(1e-9, 1 - start)))
            curve = 1 - done if schedule.decay == "linear" else (1 + math.cos(math.pi * done)) / 2
            return peak * (schedule.final_lr + (1 - schedule.final_lr) * curve)


def v3_decay(trillions: float) -> float:
    """V3's learning rate as a share of its peak 2.2e-4 after that many trillion tokens."""
    if trillions < V3_CONSTANT:
        return 1.0
    if trillions < V3_COSINE:
        done = (trillions - V3_CONSTANT) / (V3_COSINE - V3_CONSTANT)
        return 0.1 + 0.9 * (1 + math.cos(math.pi * done)) / 2
    return 0.1 if trillions < V3_TENTH else V3_LAST


def batch_rows(schedule: ScheduleConfig, full: int, step: int, steps: int, multiple: int = 1) -> int:
    """Rows of this step's batch: grows linearly from its first share to the full size.

    Each size is a multiple of `multiple`, the number of processes, so that it can be shared out.
    """
    ramp = schedule.batch_ramp * steps
    if step >= ramp:
        return full
    rows = full * (schedule.batch_start + (1 - schedule.batch_start) * step / ramp)
    return max(1, round(rows / multiple)) * multiple


def rows_before(schedule: ScheduleConfig, full: int, step: int, steps: int, multiple: int = 1) -> int:
    """Rows of all batches before that of `step`."""
    return sum(batch_rows(schedule, full, before, steps, multiple) for before in range(step))


def mtp_weight(schedule: ScheduleConfig, step: int, steps: int) -> float:
    """Lambda of the MTP loss: 0.3 for V3's first 10 T tokens, 0.1 after."""
    return schedule.mtp_weight if step < schedule.mtp_switch * steps else schedule.mtp_weight_final


def bias_speed(schedule: ScheduleConfig, speed: float, step: int, steps: int) -> float:
    """Step of the selection bias: V3 stops it for its last 500 B tokens."""
    return speed if step < schedule.bias_freeze * steps else 0.0
