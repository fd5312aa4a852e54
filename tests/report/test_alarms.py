"""Alarms on histories that must and must not ring."""

import random
from collections.abc import Callable

import pytest

from fathom.report.alarms import LEAST_STEPS, alarms

STEPS = 100
Curve = Callable[[float], float]  # of the share of the stage that is behind


def flat(value: float) -> Curve:
    return lambda share: value


def line(first: float, last: float) -> Curve:
    return lambda share: first + (last - first) * share


HEALTHY: dict[str, Curve] = {
    "reward": line(0.2, 0.7),
    "accuracy": line(0.1, 0.6),
    "entropy": line(1.0, 0.4),
    "length": line(60, 150),  # growing with accuracy, as R1-Zero's did
    "truncated": flat(0.05),
    "language": flat(0.97),
    "soundness": line(0.4, 0.8),
    "format": line(0.5, 0.99),
    "groups_dropped": flat(4),
    "groups_kept": flat(12),
    "gap_k3": flat(1e-6),
}
STUCK: dict[str, Curve] = HEALTHY | {
    "reward": flat(0.1),
    "accuracy": flat(0.1),
    "length": flat(60),
    "format": flat(0.9),
}


def history(curves: dict[str, Curve], seed: int = 0, steps: int = STEPS) -> list[dict[str, float]]:
    """Every curve with five per cent of noise."""
    rng = random.Random(seed)
    return [
        {name: curve(step / steps) * rng.gauss(1, 0.05) for name, curve in curves.items()} | {"step": step}
        for step in range(steps)
    ]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    "change",
    [
        {},
        {"accuracy": line(0.1, 0.97), "entropy": line(1.0, 0.02), "groups_dropped": line(1, 160)},  # solved
        {"length": line(150, 60)},  # shorter and better
        {"held_out_accuracy": line(0.1, 0.55)},
        {"reward": flat(0.1), "accuracy": flat(0.1), "length": flat(60), "format": flat(0.99)},  # learns nothing
    ],
)
def test_a_healthy_run_rings_nothing(change: dict[str, Curve], seed: int) -> None:
    assert alarms(history(HEALTHY | change, seed)) == []


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("curves", "name"),
    [
        (HEALTHY | {"entropy": line(1.0, 0.0)}, "entropy collapse"),
        (STUCK | {"length": line(60, 300)}, "length explosion"),
        (STUCK | {"length": line(60, 75), "truncated": line(0.05, 0.6)}, "length explosion"),
        (STUCK | {"length": line(60, 10)}, "length collapse"),
        (HEALTHY | {"language": line(0.97, 0.5)}, "language mixing"),
        (HEALTHY | {"soundness": line(0.8, 0.2)}, "reward hacking"),
        (HEALTHY | {"held_out_accuracy": line(0.5, 0.2)}, "reward hacking"),
        (STUCK | {"format": line(0.3, 0.99), "reward": line(0.05, 0.2)}, "form without accuracy"),
        (STUCK | {"groups_kept": flat(0.1)}, "dead groups"),
        (HEALTHY | {"gap_k3": flat(0.05)}, "sampler apart"),
        (HEALTHY | {"accuracy": lambda share: 0.1 + share if share < 0.6 else 1.2 - share}, "accuracy collapse"),
    ],
)
def test_each_collapse_rings_its_own_alarm_alone(curves: dict[str, Curve], name: str, seed: int) -> None:
    (alarm,) = alarms(history(curves, seed))
    assert alarm.name == name
    assert alarm.sign and alarm.remedy


def test_short_and_empty_histories_are_not_judged() -> None:
    assert alarms([]) == []
    assert alarms(history(HEALTHY | {"entropy": line(1.0, 0.0)}, steps=LEAST_STEPS - 1)) == []
    assert alarms([{"step": step} for step in range(50)]) == []
    assert alarms([{"entropy": None, "accuracy": float("nan")} for _ in range(50)]) == []
