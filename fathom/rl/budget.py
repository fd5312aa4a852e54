"""A sum of money that a stage may cost: when it ends, whether it still learns, and what more would cost."""

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from fathom.config import GRPOConfig
from fathom.eval.passk import Z_95
from fathom.runs import write_whole
from fathom.train.loop import Place

Stop = Literal["", "budget", "plateau"]
RECENT = 5  # steps whose longest is set aside for the next one and for the checkpoint behind it


@dataclass(frozen=True)
class Slope:
    """A straight line through the last accuracies: its rise a step, with the standard error of independent noise."""

    value: float
    standard_error: float

    @property
    def interval(self) -> tuple[float, float]:
        """95 %."""
        return self.value - Z_95 * self.standard_error, self.value + Z_95 * self.standard_error


def slope_of(values: Sequence[float]) -> Slope:
    """Least squares over equidistant steps; three values at least."""
    count, middle, mean = len(values), (len(values) - 1) / 2, fmean(values)
    spread = math.fsum((at - middle) ** 2 for at in range(count))
    rise = math.fsum((at - middle) * (value - mean) for at, value in enumerate(values)) / spread
    rest = math.fsum((value - mean - rise * (at - middle)) ** 2 for at, value in enumerate(values))
    return Slope(rise, math.sqrt(rest / (count - 2) / spread))


def is_plateau(accuracies: Sequence[float], steps: int, gain: float) -> bool:
    """Whether over the last `steps` the 95 % interval of the line's rise ends below `gain`; never with fewer steps."""
    if len(accuracies) < steps:
        return False
    _, high = slope_of(accuracies[-steps:]).interval
    return high * (steps - 1) < gain


def next_points(accuracies: Sequence[float], dollars_per_step: float, steps: int, points: int = 5) -> str:
    """What so many further points would cost if the line of the last `steps` went on, or why nobody knows."""
    wanted = points / 100
    recent = [value for value in accuracies[-steps:] if math.isfinite(value)]
    if len(recent) < min(steps, 10):
        return f"what the next {points} points would cost cannot be told from {len(recent)} steps"
    if fmean(recent[-5:]) + wanted > 1:
        return f"there are no {points} points left to gain"
    slope = slope_of(recent)
    low, high = slope.interval
    if low <= 0:
        rise = f"{100 * slope.value:+.3f} points a step, 95 % interval {100 * low:+.3f} to {100 * high:+.3f}"
        return f"what the next {points} points would cost cannot be told: the curve does not rise measurably ({rise})"
    cost, least, most = (wanted / rise * dollars_per_step for rise in (slope.value, high, low))
    return (
        f"the next {points} points would cost about ${cost:.2f} ({least:.2f} to {most:.2f}) if accuracy went on rising "
        f"as over the last {len(recent)} steps"
    )


class Bill:
    """Seconds that a stage has taken so far, kept beside its checkpoints: steps that a resume repeats stay paid for."""

    def __init__(self, path: Path, dollars_per_hour: float) -> None:
        self._path, self._price = path, dollars_per_hour / 3600
        kept: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        self.seconds: float = kept.get("seconds", 0.0)
        self._recent: list[float] = kept.get("recent", [])

    @property
    def dollars(self) -> float:
        """Spent so far."""
        return self.seconds * self._price

    def add(self, seconds: float) -> None:
        """A step took so long, from the end of the one before it."""
        self.seconds += seconds
        self._recent = [*self._recent, seconds][-RECENT:]
        write_whole(self._path, json.dumps({"seconds": self.seconds, "recent": self._recent}))

    def affords_a_step(self, budget: float) -> bool:
        """Whether another step as long as the longest of the last ones, and as much again to save, stays within."""
        reserve = 2 * max(self._recent, default=0.0)
        return (self.seconds + reserve) * self._price < budget


class Purse:
    """What a stage may still spend; the first process decides for all, whose clocks differ."""

    def __init__(self, place: Place, config: GRPOConfig, dollars_per_hour: float) -> None:
        if dollars_per_hour <= 0:
            raise ValueError(
                f"grpo.budget_dollars={config.budget_dollars} needs the machine's price, but dollars_per_hour="
                f"{dollars_per_hour}; give it with --price"
            )
        self._place, self._config = place, config
        self._bill = Bill(place.run.checkpoint_dir(place.stage) / "bill.json", dollars_per_hour)
        lines = place.run.read_metrics(place.stage)
        self._accuracies = [line["accuracy"] for line in lines if line.get("accuracy") is not None]
        self._since = time.perf_counter()

    def is_empty(self) -> bool:
        """Whether nothing is left for a step, or the stage had ended on a plateau."""
        return bool(self._place.world.gather(bool(self._why()))[0])

    def pay(self, metrics: Mapping[str, object]) -> dict[str, object]:
        """Book the time since the last step; what belongs in the step's metrics, with the reason if it is the last."""
        now = time.perf_counter()
        seconds, self._since = now - self._since, now
        self._accuracies.append(float(str(metrics["accuracy"])))
        if self._place.world.is_main:
            self._bill.add(seconds)
        stop = str(self._place.world.gather(self._why())[0])
        return {"spent_dollars": self._bill.dollars, **({"stopped": stop} if stop else {})}

    def _why(self) -> Stop:
        """Why no further step is made, as this process sees it."""
        c = self._config
        if not self._bill.affords_a_step(c.budget_dollars):
            return "budget"
        return "plateau" if is_plateau(self._accuracies, c.plateau_steps, c.plateau_gain) else ""


def parse_dollars(text: str) -> float:
    """Dollars of "30usd", "30" or "$30"; ValueError for all else."""
    plain = text.strip().lower().removeprefix("$").removesuffix("usd").strip()
    try:
        value = float(plain)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise ValueError(f"--budget {text} is no sum of dollars above 0; write it like 30usd or 30")
    return value
