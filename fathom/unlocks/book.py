"""Experiments as they are run and booked: a ledger line a seed, never run twice, never beyond the time."""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fathom.runs import Record, Run, describe_commit, describe_machine, finite
from fathom.unlocks.experiment import Context, Experiment, OutOfTime, Result, hash_of

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Book:
    """The ledger of a directory of experiments, as seen from one device and size."""

    context: Context

    @property
    def run(self) -> Run:
        return Run(self.context.directory)

    def finished(self, experiment: Experiment) -> dict[int, Record]:
        """The lines of the seeds that are done with the configs of today, by seed."""
        wanted = {"size": self.context.size, "device": self.context.device.type}
        wanted["key"] = self._key(experiment)
        lines = self.run.read_ledger(experiment.name)
        found = {int(line["seed"]): line for line in lines if wanted.items() <= line.items()}
        return {seed: found[seed] for seed in sorted(found) if seed < experiment.seeds}

    def _key(self, experiment: Experiment) -> str:
        """What tells measurements apart: the configs, and the ledger of the reader's run where that is read."""
        key, own = experiment.key(self.context.size), self.context.own_run
        return hash_of([key, Run(own).read_ledger()]) if experiment.reads_run and own else key

    def seeds_left(self, experiment: Experiment) -> list[int]:
        done = self.finished(experiment)
        return [seed for seed in range(experiment.seeds) if seed not in done]

    def seconds_a_seed(self, experiment: Experiment) -> float:
        """As measured here, the slowest; as estimated by the card where nothing is."""
        seconds = [float(line["seconds"]) for line in self.finished(experiment).values()]
        return max(seconds) if seconds else 60 * experiment.minutes[self.context.size] / experiment.seeds

    def minutes(self, experiment: Experiment) -> float:
        """Of all seeds, on this machine."""
        return self.seconds_a_seed(experiment) * experiment.seeds / 60

    def result(self, experiment: Experiment) -> Result | None:
        """What the finished seeds say; None where there are none."""
        lines = self.finished(experiment)
        return experiment.conclude([line["figures"] for line in lines.values()]) if lines else None

    def state(self, experiment: Experiment) -> str:
        """Such as `2 of 3 seeds`."""
        done = len(self.finished(experiment))
        if done == experiment.seeds:
            return "done"
        return f"{done} of {experiment.seeds} seeds" if done else "not run"

    def measure(self, experiments: Sequence[Experiment]) -> list[str]:
        """Run the seeds that are left, short experiments first; returns the names of those that time cut off.

        A seed begins only if it should end in time, by what earlier ones took, so that a run ends when it is told to.
        """
        cut: list[str] = []
        with self.run.lock():
            for experiment in sorted(experiments, key=self._seconds_left):
                try:
                    self._measure(experiment)
                except OutOfTime:
                    log.info("%s: out of time", experiment.name)
                    cut.append(experiment.name)
        return cut

    def _seconds_left(self, experiment: Experiment) -> float:
        return len(self.seeds_left(experiment)) * self.seconds_a_seed(experiment)

    def _measure(self, experiment: Experiment) -> None:
        for seed in self.seeds_left(experiment):
            if self.seconds_a_seed(experiment) > self.context.seconds_left:
                raise OutOfTime
            log.info("%s, seed %d", experiment.name, seed)
            started = time.perf_counter()
            figures = experiment.measure(self.context, seed)
            self._enter(experiment, seed, figures, time.perf_counter() - started)

    def _enter(self, experiment: Experiment, seed: int, figures: dict[str, Any], seconds: float) -> None:
        self.run.append_ledger(
            experiment.name,
            seed=seed,
            size=self.context.size,
            device=self.context.device.type,
            key=self._key(experiment),
            figures=finite(figures),
            seconds=round(seconds, 3),
            commit=describe_commit(),
            machine=describe_machine(),
        )
