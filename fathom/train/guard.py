"""Which updates are left out: losses or gradients that are not finite, and losses far above the median."""

import math
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from fathom.config import ResilienceConfig
from fathom.parallel.world import World

LEAST = 16  # losses that a median needs


@dataclass
class Guard:
    """Judges every step before its update; what it knows travels in checkpoints, so that a resume judges alike."""

    config: ResilienceConfig = field(default_factory=ResilienceConfig)
    losses: list[float] = field(default_factory=list[float])  # of updates that were made, newest last
    skipped: int = 0  # updates left out since

    def objection(self, step: int, loss: float, grad_norm: float, world: World) -> str:
        """Why the update of `step` must be left out, the same on every process; nothing where it may be made.

        Raises RuntimeError where one more than `skips` in a row would be left out.
        """
        reason = self._reason(loss, grad_norm)
        if world.size > 1:  # processes that summed in different orders may differ in the last bit
            (objecting,) = world.sum_numbers(float(bool(reason)))
            reason = reason or ("another process objects" if objecting else "")
        if not reason:
            self.skipped = 0
            self.losses = [*self.losses, loss][-self.config.spike_window :] if self.config.spike else []
            return ""
        self.skipped += 1
        if self.skipped > self.config.skips:
            raise RuntimeError(
                f"{reason} at step {step}: training has diverged; {self.skipped - 1} updates before it were left "
                "out in a row and the weights are those before them. Repeat the stage with a lower learning rate"
            )
        return reason

    def _reason(self, loss: float, grad_norm: float) -> str:
        if not math.isfinite(grad_norm):
            return "the gradient is not finite"
        if not math.isfinite(loss):
            return "the loss is not finite"
        if self.config.spike and len(self.losses) >= min(LEAST, self.config.spike_window):
            usual = median(self.losses)
            if loss > self.config.spike * usual:
                return f"the loss {loss:.4g} is {loss / usual:.3g} times the running median {usual:.4g}"
        return ""

    def as_values(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"losses": self.losses, "skipped": self.skipped}

    def restore(self, values: dict[str, Any]) -> None:
        """Take up what `as_values` gave, or nothing from older checkpoints."""
        self.losses, self.skipped = list(values.get("losses", ())), values.get("skipped", 0)
