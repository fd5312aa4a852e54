"""What training does when something goes wrong: bad batches, hung processes."""

from dataclasses import dataclass

from fathom.config.checks import require_positive


@dataclass(frozen=True, kw_only=True)
class ResilienceConfig:
    """When an update is left out, when training stops for it, and how long a step may take."""

    skips: int = 3  # updates in a row that may be left out before training stops; 0 stops at the first
    spike: float = 0.0  # leave out a loss above so many running medians; 0: only what is not finite
    spike_window: int = 128  # losses that the median is taken over
    hang_seconds: float = 0.0  # without a finished step, until every process writes its stacks and ends; 0 never

    def __post_init__(self) -> None:
        require_positive("resilience", spike_window=self.spike_window)
        if self.skips < 0:
            raise ValueError(f"resilience.skips={self.skips} is negative; give a number of updates, 0 for none")
        if self.spike and self.spike <= 1:
            raise ValueError(
                f"resilience.spike={self.spike} would leave out ordinary losses; give more than 1, or 0 for no guard"
            )
        if self.hang_seconds < 0:
            raise ValueError(f"resilience.hang_seconds={self.hang_seconds} is negative; give seconds, or 0 for none")
