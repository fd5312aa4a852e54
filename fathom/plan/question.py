"""What a plan is asked for, beside the config."""

import re
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Literal

from fathom.plan.layout import Layout
from fathom.plan.timeline import Times

SIZES = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9, "t": 1e12}


@dataclass(frozen=True, kw_only=True)
class Question:
    """The flags of `fathom plan` that are no fields of a config."""

    model: Path | None = None  # a published config.json, its directory, or a run, in place of a preset
    gpus: str = ""  # devices, such as 2xH200; those that suit the model unless given
    tokens: str = ""  # pretrain on so many tokens, such as 10B
    hours: float = 0.0  # or for so many hours
    budget: float = 0.0  # or for so many dollars
    price: float | None = None  # dollars an hour of one device (--dollars_per_hour: of all); a table's unless given
    mfu: float = 0.0  # share of the devices' peak that training reaches; predicted unless given
    rows: int = 0  # sequences a step; the config's unless given
    seq_len: int = 0  # tokens a row; the config's unless given
    layout: Layout = field(default_factory=Layout)  # how a step is spread; searched for unless given
    context: int = 0  # tokens behind which the ceilings of serving are computed; up to 4,096 unless given
    acceptance: float = 0.85  # share of MTP's drafts that are accepted (V3 5.4.3: 0.85 to 0.90)
    schedule: Literal["", "1f1b", "zb1p", "zbv", "dualpipe", "dualpipev"] = ""  # draw this pipeline, and nothing else
    ranks: int = 8  # of that pipeline
    micro_batches: int = 20  # through that pipeline
    times: str = "1,1,1"  # of forward, input gradient, weight gradient; a fourth is an overlapped pair's
    compare: Path | None = None  # a run that was planned with --out: print the prediction beside what it measured
    json: bool = False  # print the plan as JSON
    html: Path | None = None  # write the plan as a page

    def __post_init__(self) -> None:
        aims = [name for name in ("tokens", "hours", "budget") if getattr(self, name)]
        if len(aims) > 1:
            raise ValueError(f"--{' and --'.join(aims)} exclude each other; give one, and the others follow")
        for name in ("hours", "budget", "price", "mfu", "rows", "seq_len", "context"):
            value = getattr(self, name) or 0
            if value < 0 or not isfinite(value):
                raise ValueError(f"--{name} {value} is no amount; give a positive number or leave it out")
        if self.budget and self.price == 0:
            raise ValueError("--budget buys any time at --price 0; give --hours or --tokens instead")
        if self.mfu > 1:
            raise ValueError(f"--mfu {self.mfu} is no share of the peak; give 0.4 for 40 %")
        if not 0 <= self.acceptance <= 1:
            raise ValueError(f"--acceptance {self.acceptance} is no share; give 0.85 for 85 %")
        if self.compare and (self.html or self.schedule):
            raise ValueError("--compare prints a run's figures alone; leave --html and --schedule away, or --compare")


def parse_tokens(text: str) -> float:
    """A number of tokens as people write it: `10B`, `1.5T`, `300_000`, `1e9`."""
    match = re.fullmatch(r"([\d_]*\.?\d+(?:e\+?\d{1,2})?)\s*([kmbt]?)", text.strip().lower())
    if match is None or not float(match[1]):
        raise ValueError(f"--tokens {text!r} is no number of tokens; write 300M, 10B or 14.8T")
    return float(match[1]) * SIZES[match[2]]


def parse_times(text: str) -> Times:
    """Times of a chunk: forward, input gradient, weight gradient, and an overlapped pair's if not their sum."""
    try:
        times = [float(part) for part in text.split(",")]
    except ValueError:
        times = []
    if len(times) not in (3, 4) or min(times) <= 0:
        raise ValueError(f"--times {text!r} is no list of three or four positive numbers; write 1,1,1")
    return Times(F=times[0], B=times[1], W=times[2], FB=times[3] if len(times) == 4 else None)
