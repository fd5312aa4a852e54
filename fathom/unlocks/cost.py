"""What the famous $5.576M pays for: hours recomputed from an independent figure, and what the sum leaves out."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fathom.demo import RUN
from fathom.plan.cost import EXCLUDED, R1_GPU_HOURS, V3_GPU_HOURS, V3_TOKENS
from fathom.plan.hardware import HARDWARE
from fathom.plan.published import V3_TOKENS_A_DAY
from fathom.runs import Run
from fathom.unlocks.drawing import Bars
from fathom.unlocks.experiment import Claim, Context, Experiment, Figures, Result, Size
from fathom.unlocks.verdict import above, all_of, exact

GPUS = 2048  # that trained V3
PRINTED = 5.576e6  # dollars of V3; V3 Table 1
PRINTED_R1 = 294e3  # dollars of R1 on top; R1 Table 7
HALF_DIGIT, HALF_DIGIT_R1 = 500.0, 500.0  # what the printed figures are rounded to
CLOSE = 0.01  # share by which two papers' figures of one run may differ


@dataclass(frozen=True, kw_only=True)
class Sum:
    """What a bill is added up from."""

    pretraining_hours: str
    dollars_per_hour: float = HARDWARE["h800"].dollars_per_hour


def variants(size: Size) -> dict[str, Sum]:
    """The hours of pretraining as printed, and from the tokens a day that a later paper prints."""
    return {
        "as printed": Sum(pretraining_hours="V3 table 1"),
        "from throughput": Sum(pretraining_hours="14.8T tokens at ISCA'25 table 4's tokens a day"),
    }


def measure(context: Context, seed: int) -> Figures:
    """The sums in dollars, and the bill of the demo model that ships with Fathom."""
    printed, derived = variants(context.size).values()
    days = V3_TOKENS / V3_TOKENS_A_DAY
    later = sum(V3_GPU_HOURS.values()) - V3_GPU_HOURS["pretraining"]
    return {
        "v3": sum(V3_GPU_HOURS.values()) * printed.dollars_per_hour,
        "v3_from_throughput": (days * 24 * GPUS + later) * derived.dollars_per_hour,
        "days": days,
        "r1": sum(R1_GPU_HOURS.values()) * printed.dollars_per_hour,
        "stages": {name: hours * printed.dollars_per_hour for name, hours in (V3_GPU_HOURS | R1_GPU_HOURS).items()},
        "demo": sum(stage["dollars"] for stage in bill(RUN)),
        "own": bill(context.own_run) if context.own_run else [],
        "left_out": list(EXCLUDED),
    }


def bill(run: Path) -> list[dict[str, Any]]:
    """The finished stages of a run as its ledger has them: hours by the clock, and dollars at the run's own price."""
    lines = [line for line in Run(run).read_ledger() if "dollars" in line]
    return [
        {"stage": line["stage"], "hours": float(line["seconds"]) / 3600, "dollars": float(line["dollars"])}
        for line in lines
    ]


def conclude(seeds: Sequence[Figures]) -> Result:
    """Supported where the sums are the printed ones and the independent figure gives nearly the same hours."""
    (found,) = seeds
    apart = abs(found["v3_from_throughput"] / found["v3"] - 1)
    misses = abs(found["v3"] - PRINTED), abs(found["r1"] - PRINTED_R1)
    return Result(
        measured=f"${found['v3'] / 1e6:.3f}M, R1 on top ${found['r1'] / 1e3:.0f}K; from the throughput of another "
        f"paper ${found['v3_from_throughput'] / 1e6:.3f}M",
        verdict=all_of(
            above(exact(HALF_DIGIT - misses[0])),
            above(exact(HALF_DIGIT_R1 - misses[1])),
            above(exact(CLOSE - apart)),
        ),
        because=f"the sums are to agree with the printed figures to their last digit, and the hours with the tokens a "
        f"day printed elsewhere within {CLOSE:.0%} (they differ by {apart:.2%}); arithmetic, no interval",
        headings=("stage", "dollars"),
        rows=[
            *((name, f"{dollars:,.0f}") for name, dollars in found["stages"].items()),
            ("V3, sum", f"{found['v3']:,.0f}"),
            ("R1 on top, sum", f"{found['r1']:,.0f}"),
            ("the demo model that ships here", f"{found['demo']:.4f}"),
            *own_rows(found["own"]),
            *((f"not counted: {what}", "?") for what in found["left_out"]),
        ],
        charts=[
            Bars(
                title="What the final runs cost",
                caption="At $2 an H800-hour; diamonds are the printed sums.",
                axis="million dollars",
                bars={
                    "V3 as printed": (found["v3"] / 1e6,) * 3,
                    "V3 from throughput": (found["v3_from_throughput"] / 1e6,) * 3,
                    "R1 on top": (found["r1"] / 1e6,) * 3,
                },
                published={"V3 as printed": PRINTED / 1e6, "V3 from throughput": PRINTED / 1e6, "R1 on top": 0.294},
            )
        ],
        figures={
            "apart": apart,
            "v3": found["v3"],
            "r1": found["r1"],
            "own": sum(stage["dollars"] for stage in found["own"]),
        },
    )


def own_rows(stages: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    """The reader's run: each stage and the sum, with the price of an hour that the two make."""
    if not stages:
        return []
    dollars, hours = (sum(stage[key] for stage in stages) for key in ("dollars", "hours"))
    price = f" ({hours:.3f} hours at ${dollars / hours:.2f})" if hours else ""
    lines = [(f"your run: {stage['stage']}", f"{stage['dollars']:,.4f}") for stage in stages]
    return [*lines, (f"your run, sum{price}", f"{dollars:,.4f}")]


EXPERIMENT = Experiment(
    name="cost",
    title="What $5.576M pays for",
    claim=Claim(
        says="The final run of DeepSeek-V3 took 2.788M H800-hours, $5.576M at $2 an hour; R1 took $294K on top.",
        source="DeepSeek-V3 Table 1; R1 Table 7; ISCA'25 Table 4",
        published="$5.576M, and $294K for R1",
        conditions="GPU-hours of the final run at a rented price that the authors assume",
    ),
    variants=variants,
    changes=frozenset({"pretraining_hours"}),
    minutes={"toy": 0.01, "cpu": 0.01, "gpu": 0.01},
    seeds=1,
    measure=measure,
    conclude=conclude,
    reads_run=True,
    shows="that the printed hours agree with the throughput printed in another paper, and add up to the printed sum.",
    does_not_show="what the model cost to develop: " + "; ".join(EXCLUDED) + ". Both papers have the same authors, so "
    "their agreement shows consistency, not that the hours were measured by anyone else.",
)
