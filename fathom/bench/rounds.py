"""Rounds in which every side takes its turn, so that whatever else the machine does falls on all of them alike."""

import logging
import os
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from statistics import median
from typing import Any

from fathom.bench.team import Team
from fathom.runs import describe_machine

log = logging.getLogger(__name__)

WARM_UP = 1  # rounds that do not count
LIBRARIES = ("torch", "transformers", "trl", "accelerate", "numpy")


def play(teams: Sequence[Team], rounds: int) -> tuple[dict[str, list[float]], dict[str, list[Any]]]:
    """Tokens per second of every counted turn, and what the first process of each team handed in at its last.

    Every process hands in a mapping with the number of its `tokens`.
    """
    speeds: dict[str, list[float]] = {team.name: [] for team in teams}
    last: dict[str, list[Any]] = {}
    for number in range(WARM_UP + rounds):
        for team in teams:
            seconds, results = team.turn()
            last[team.name] = results
            if number >= WARM_UP:
                speeds[team.name].append(sum(result["tokens"] for result in results) / seconds)
        log.info("round %d of %d: %s", number + 1 - WARM_UP, rounds, _describe(speeds))
    return speeds, last


def _describe(speeds: dict[str, list[float]]) -> str:
    known = {name: values[-1] for name, values in speeds.items() if values}
    return "; ".join(f"{name} {value:,.0f} tokens/s" for name, value in known.items()) or "warm-up"


def summarize(speeds: dict[str, list[float]], ours: str) -> dict[str, Any]:
    """Median tokens/s of each side, the fastest peer, and the ratio of the medians; also that of the fastest turns."""
    medians = {name: median(values) for name, values in speeds.items()}
    peers = {name: value for name, value in medians.items() if not name.startswith(ours)}
    own = max((name for name in medians if name.startswith(ours)), key=medians.__getitem__)
    summary: dict[str, Any] = {"tokens_per_s": {name: round(value) for name, value in medians.items()}}
    if peers:
        best = max(peers, key=peers.__getitem__)
        summary |= {
            "best_peer": best,
            "ratio": round(medians[own] / medians[best], 3),
            "ratio_of_fastest_rounds": round(max(speeds[own]) / max(max(speeds[name]) for name in peers), 3),
        }
    return summary


def describe_conditions() -> dict[str, Any]:
    """Machine, libraries and how busy the machine is beside the measurement."""
    return {
        "machine": describe_machine(),
        "versions": {name: found for name in LIBRARIES if (found := _version(name))},
        "load_before": [round(load, 2) for load in os.getloadavg()],
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
