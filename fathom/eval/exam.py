"""What `fathom eval` is asked for beside a run's own task. Imports no torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

LAW = ("temperature", "top_p", "max_tokens")
BENCHMARKS = ("aime", "math_500", "gpqa", "livecodebench")


@dataclass(frozen=True, kw_only=True)
class Exam:
    """Questions from files in place of the run's own task; unset fields follow the run or, for a suite, R1."""

    questions: Path | None = None  # JSONL file of question and answer, or question, choices and answer
    suite: Literal["r1"] | None = None  # the benchmarks of R1, from the files below, beside the published scores
    aime: Path | None = None  # file of AIME 2024, fields problem and answer (suite r1)
    math_500: Path | None = None  # file of MATH-500, fields problem and answer (suite r1)
    gpqa: Path | None = None  # file of GPQA Diamond, fields question, choices and answer (suite r1)
    livecodebench: Path | None = None  # file of LiveCodeBench as published, plain or light (suite r1)
    lm_eval: tuple[str, ...] = ()  # tasks of lm-evaluation-harness (extra eval)
    lm_eval_path: Path | None = None  # directory with further tasks for --lm_eval
    few_shot: int | None = None  # worked examples in front of each question of --lm_eval (the task's own number)
    limit: int | None = None  # questions of each task of --lm_eval (all)
    samples: int | None = (
        None  # answers to each question (eval.samples; suite r1: 64 AIME and GPQA, 16 MATH-500, 8 LCB)
    )
    temperature: float | None = None  # of files (the run's; suite r1: 0.6)
    top_p: float | None = None  # of files (the run's; suite r1: 0.95)
    max_tokens: int | None = None  # of files (the run's; suite r1: 32768, or what the context holds)
    output: Path | None = None  # JSON file for the scores and answers (eval_NAME.json in the run)

    def __post_init__(self) -> None:
        if self.samples is not None and self.samples < 1:
            raise ValueError(f"samples={self.samples} asks for no answer; give 1 or more")
        files = [name for name in BENCHMARKS if getattr(self, name)]
        if sum(map(bool, (self.questions, self.suite, self.lm_eval))) > 1:
            raise ValueError(
                "--questions, --suite and --lm_eval are evaluations of their own; give one, then the other"
            )
        harness = [name for name in ("lm_eval_path", "few_shot", "limit") if getattr(self, name) is not None]
        if harness and not self.lm_eval:
            raise ValueError(f"--{harness[0]} belongs to --lm_eval; name its tasks, as in --lm_eval arc_easy")
        if self.lm_eval and (self.law or self.samples):
            raise ValueError(
                "tasks of --lm_eval bring their own sampling; leave out --samples, --temperature and the like"
            )
        if files and not self.suite:
            raise ValueError(f"--{files[0]} belongs to a suite; add --suite r1, or name the file with --questions")
        if self.suite and not files:
            flags = ", ".join(f"--{name}" for name in BENCHMARKS)
            raise ValueError(f"--suite r1 has no questions of its own; give one or more of {flags}")
        if not self.asks_files:
            for name in (*LAW, "output"):
                if getattr(self, name) is not None:
                    raise ValueError(
                        f"--{name} belongs to --questions, --suite or --lm_eval; a run's own task is drawn from the "
                        "law it was trained with and scored in the run's ledger"
                    )

    @property
    def asks_files(self) -> bool:
        """Whether the questions come from elsewhere than the run's own task."""
        return bool(self.questions or self.suite or self.lm_eval)

    @property
    def law(self) -> dict[str, float | int]:
        """The fields of the sampling that are set."""
        return {name: getattr(self, name) for name in LAW if getattr(self, name) is not None}
