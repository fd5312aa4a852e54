"""What redundant experts, placed from measured loads, gain: the forecast of a training run (EPLB; V3 3.4)."""

from dataclasses import dataclass

from jaxtyping import Int
from torch import Tensor

from fathom.config import ParallelConfig
from fathom.plan.placement import Placement, equal_runs, place_experts


@dataclass
class Forecast:
    """Says, window by window, how evenly `devices` would share the experts' work with and without redundant experts.

    One more slot a device than experts need; experts go where the loads of one window put them, and the next window
    is the judge, as in serving.
    """

    devices: int
    window: Tensor | None = None  # (L, E) loads so far
    placement: Placement | None = None  # from the window before

    @staticmethod
    def of(layout: ParallelConfig, experts: int) -> "Forecast | None":
        """The forecast that `layout` asks for. Raises ValueError where the experts do not divide over its devices."""
        devices = layout.balance_devices
        if devices and (not experts or experts % devices):
            raise ValueError(
                f"parallel.balance_devices={devices} does not divide the model's {experts} routed experts; choose one "
                "of their divisors, or 0 for no forecast"
            )
        return Forecast(devices) if devices else None

    def add(self, loads: Int[Tensor, "L E"]) -> None:
        """Count one step's token-expert pairs; a window has equally many layers in all its steps."""
        known = self.window is not None and self.window.shape == loads.shape
        self.window = self.window + loads if known and self.window is not None else loads.clone()

    def close(self) -> dict[str, object]:
        """End the window: the busiest device's excess over the mean, over all layers; nothing in the first window.

        `before` has the experts in equal runs, `after` where the last window's loads put them, and `hindsight` where
        this window's own would.
        """
        if self.window is None or not self.window.numel():
            return {}
        loads = self.window.double().cpu().numpy()
        past, slots = self.placement, slots_for(loads.shape[1], self.devices)
        self.placement = place_experts(loads, slots, 1, 1, self.devices)
        self.window = None
        if past is None or len(past.replica_counts) != len(loads):  # a step without MTP has fewer layers
            return {}
        plain = equal_runs(len(loads), loads.shape[1], self.devices)
        excess = {"before": plain, "after": past, "hindsight": self.placement}
        found = {name: round(placement.excess(loads, self.devices), 6) for name, placement in excess.items()}
        return {"placement": {"devices": self.devices, "slots": slots, **found}}


def slots_for(experts: int, devices: int) -> int:
    """Slots of a layer: an equal number on every device, and at least one more than experts alone would need."""
    return (-(-experts // devices) + 1) * devices
