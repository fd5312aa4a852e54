"""What redundant experts, placed from measured loads, gain: the forecast of a training run (EPLB; V3 3.4)."""

from dataclasses import dataclass

from torch import Tensor

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
    def of(devices: int, experts: int) -> "Forecast":
        """The forecast for `devices`, or none for 0. Raises ValueError where the experts do not divide over them."""
        if devices and (not experts or experts % devices):
            raise ValueError(
                f"parallel.balance_devices={devices} does not divide the model's {experts} routed experts; choose one "
                "of their divisors, or 0 for no forecast"
            )
        return Forecast(devices)

    def step(self, loads: Tensor, ends: bool) -> dict[str, object]:
        """Count one step's token-expert pairs (L, E), and say what the window shows where it `ends`."""
        if not self.devices:
            return {}
        known = self.window is not None and self.window.shape == loads.shape
        self.window = self.window + loads if known and self.window is not None else loads.clone()
        return self._close(self.window) if ends else {}

    def _close(self, window: Tensor) -> dict[str, object]:
        """The busiest device's excess over the mean, over all layers; nothing in the first window.

        `before` has the experts in equal runs, `after` where the last window's loads put them, and `hindsight` where
        this window's own would.
        """
        loads = window.double().cpu().numpy()
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
