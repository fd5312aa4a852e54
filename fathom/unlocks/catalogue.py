"""The experiments there are, in the order of the story. A card is a module of this name with an `EXPERIMENT`."""

import difflib
from importlib import import_module

from fathom.unlocks.experiment import Experiment

NAMES = (
    "fp8-accumulation",
    "fp8-memory",
    "moe-vs-dense",
    "balance",
    "mla-vs-mha-gqa-mqa",
    "absorption",
    "kv-throughput",
    "mtp-speculation",
    "utilisation",
    "pipeline",
    "r1-zero",
    "cold-start",
    "grpo-variants",
    "distillation",
    "cost",
    "thirty-dollars",
)


def find(name: str) -> Experiment:
    """The experiment of this name. Raises ValueError with the nearest name there is."""
    if name not in NAMES:
        near = difflib.get_close_matches(name, NAMES, n=1)
        guess = f"did you mean {near[0]}?" if near else f"there are {', '.join(NAMES)}, or all"
        raise ValueError(f"{name!r} is no experiment; {guess}")
    return import_module(f"fathom.unlocks.{name.replace('-', '_')}").EXPERIMENT


def everything() -> list[Experiment]:
    """All experiments."""
    return [find(name) for name in NAMES]
