"""The benchmarks that R1 was published with: how they were sampled, and the scores in print."""

from dataclasses import dataclass
from typing import NamedTuple

TEMPERATURE, TOP_P, MAX_TOKENS = 0.6, 0.95, 32_768  # of all benchmarks (R1, evaluation set-up)


@dataclass(frozen=True)
class Benchmark:
    """One benchmark of the suite."""

    name: str
    field: str  # of `Exam`, which holds its file
    samples: int  # answers per question in print (R1v2 and Nature: 64 for AIME and GPQA, 16 for MATH-500, 8 for LCB)


AIME = Benchmark("AIME 2024", "aime", 64)
MATH_500 = Benchmark("MATH-500", "math_500", 16)
GPQA = Benchmark("GPQA Diamond", "gpqa", 64)
LIVE_CODE_BENCH = Benchmark("LiveCodeBench", "livecodebench", 8)
SUITE = (AIME, MATH_500, GPQA, LIVE_CODE_BENCH)


class Row(NamedTuple):
    """One line of the table: a benchmark, and pass@1 or the majority vote of 64 answers."""

    benchmark: Benchmark
    measure: str  # "pass@1" or "cons@64"


ROWS = (
    Row(AIME, "pass@1"),
    Row(AIME, "cons@64"),
    Row(MATH_500, "pass@1"),
    Row(GPQA, "pass@1"),
    Row(LIVE_CODE_BENCH, "pass@1"),
)
WINDOW = (
    "LiveCodeBench: published scores are those of problems from August 2024 to January 2025; its programs ran here "
    "without packages, 6 s a test, and outputs are compared as text, numbers among them."
)


@dataclass(frozen=True)
class Published:
    """A model's scores in print, in percent, one for each of ROWS; None where the source has none."""

    model: str
    scores: tuple[float | None, ...]
    source: str
    note: str = ""


README = "README of deepseek-ai/DeepSeek-R1"
PAPER = "DeepSeek-R1 report, January 2025"

PUBLISHED = (
    Published(
        "V3", (39.2, None, 90.2, 59.1, 36.2), f"{README}, evaluation table", f"LiveCodeBench from the {PAPER}, Table 4"
    ),
    Published(
        "R1-Zero",
        (71.0, 86.7, 95.9, 73.3, 50.0),
        f"{PAPER}, Table 2",
        "the second version and Nature print 77.9 for AIME and 75.8 for GPQA",
    ),
    Published("R1", (79.8, None, 97.3, 71.5, 65.9), f"{PAPER}, Table 4"),
    Published("o1", (79.2, None, 96.4, 75.7, 63.4), f"o1-1217 in the {README}, evaluation table"),
    Published(
        "GPT-4o",
        (9.3, 13.4, 74.6, 49.9, 34.2),
        f"GPT-4o-0513 in the {README}, evaluation table, cons@64 in its table of distilled models",
        "which prints 32.9 for LiveCodeBench",
    ),
    Published(
        "Claude 3.5 Sonnet",
        (16.0, 26.7, 78.3, 65.0, 33.8),
        f"Claude-3.5-Sonnet-1022 in the {README}, evaluation table, cons@64 in its table of distilled models",
        "which prints 38.9 for LiveCodeBench",
    ),
)
