"""What an experiment is: a claim, a baseline and its variants, one seed's measurement, and what all seeds say."""

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass
from math import inf
from pathlib import Path
from typing import Any, Literal, cast

import torch

from fathom.runs import write_whole
from fathom.unlocks.drawing import Chart
from fathom.unlocks.verdict import Verdict

Size = Literal["toy", "cpu", "gpu"]  # seconds, for tests; two laptop cores; one GPU
Figures = dict[str, Any]  # of one seed, as JSON holds it; what a clock measured stands under "timed"


class OutOfTime(Exception):
    """The time that was granted is over; whatever is finished stands in the ledger."""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What a report says, and what it measured against what."""

    says: str
    source: str  # paper and section
    published: str  # the figure as printed
    conditions: str  # what was measured against what, on what


@dataclass(frozen=True, kw_only=True)
class Result:
    """What the seeds say, for people and machines."""

    measured: str  # the figure to stand beside the published one, with its interval
    verdict: Verdict
    because: str  # interval and margin behind the verdict, in a sentence
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    charts: Sequence[Chart] = ()
    figures: Figures = field(default_factory=dict[str, Any])


@dataclass(frozen=True)
class Context:
    """Where an experiment runs and for how long."""

    device: torch.device
    size: Size
    directory: Path  # of all experiments, whose checkpoints they share
    deadline: float = inf  # of time.monotonic()
    own_run: Path | None = None  # a run of the reader's, whose bill stands beside the paper's

    @property
    def seconds_left(self) -> float:
        return self.deadline - time.monotonic()

    def check_time(self) -> None:
        """Raise OutOfTime behind the deadline; long experiments ask after every step."""
        if self.seconds_left < 0:
            raise OutOfTime

    def checkpoint(self, config: Any, make: Callable[[Path], None]) -> Path:
        """The directory that `make` fills for `config`, made at most once; cards with equal configs share it.

        `config` says all that the content follows from: model, data, steps, seed. What an interrupted `make` leaves
        is thrown away.
        """
        path = self.directory / "checkpoints" / hash_of(config)
        if not path.exists():
            draft = path.with_name(f".{path.name}")
            shutil.rmtree(draft, ignore_errors=True)
            draft.mkdir(parents=True)
            make(draft)
            write_whole(draft / "made_from.json", json.dumps(plain(config), indent=1))
            draft.rename(path)
        return path


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One claim put to the test. `measure` runs one seed; `conclude` is arithmetic on the seeds' figures."""

    name: str
    title: str
    claim: Claim
    variants: Callable[[Size], Mapping[str, Any]]  # configs by name; the first is the baseline
    changes: frozenset[str]  # the fields in which variants may differ from the baseline, as `difference` names them
    minutes: Mapping[Size, float]  # of all seeds, about
    seeds: int  # 1 where nothing is drawn
    measure: Callable[[Context, int], Figures]
    conclude: Callable[[Sequence[Figures]], Result]
    reads_run: bool = False  # whether what is measured follows from `Context.own_run` too
    shows: str
    does_not_show: str

    def key(self, size: Size) -> str:
        """What tells measurements of other configs apart."""
        return hash_of(self.variants(size))

    def differences(self, size: Size) -> dict[str, dict[str, tuple[Any, Any]]]:
        """For each variant the fields that differ from the baseline, with both values."""
        (_, baseline), *others = self.variants(size).items()
        return {name: difference(baseline, config) for name, config in others}


def difference(baseline: Any, variant: Any) -> dict[str, tuple[Any, Any]]:
    """Dotted names of the fields in which two configs differ, with both values; None where one lacks it."""
    mine, other = _flat(plain(baseline)), _flat(plain(variant))
    names = [*mine, *(name for name in other if name not in mine)]
    return {name: (mine.get(name), other.get(name)) for name in names if mine.get(name) != other.get(name)}


def plain(config: Any) -> Any:
    """A config, or a mapping or sequence of them, as JSON holds it."""
    if is_dataclass(config) and not isinstance(config, type):
        return plain(asdict(config))
    if isinstance(config, Mapping):
        return {str(key): plain(value) for key, value in cast(Mapping[Any, Any], config).items()}
    if isinstance(config, list | tuple):
        return [plain(item) for item in cast(Sequence[Any], config)]
    return str(config) if isinstance(config, Path) else config


def hash_of(config: Any) -> str:
    """Twelve hex digits that stand for a config."""
    return hashlib.sha256(json.dumps(plain(config), sort_keys=True).encode()).hexdigest()[:12]


def _flat(tree: Any, name: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {name: tree}
    leaves: dict[str, Any] = {}
    for key, value in cast(dict[str, Any], tree).items():
        leaves |= _flat(value, f"{name}.{key}" if name else key)
    return leaves
