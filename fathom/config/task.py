"""Tasks: the problems that reinforcement learning and evaluation pose."""

from dataclasses import dataclass

from fathom.config.checks import require_choice, require_positive, require_unit_interval

OPERATORS = ("+", "-", "*", "/")


@dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """Countdown: reach a target from given numbers, each used once (TinyZero's task)."""

    kind: str = "countdown"  # or "arithmetic"
    numbers: int = 3  # how many numbers are given
    max_number: int = 20
    max_target: int = 60
    operators: str = "+-"
    max_failed_tries: int = 1  # failed attempts a worked solution may show before it succeeds
    demonstrations: int = 2000  # worked solutions in the cold-start set (R1 2.3.1: thousands)
    held_out_share: float = 0.125  # share of all problems, by hash, kept for evaluation

    def __post_init__(self) -> None:
        require_choice("task", "kind", self.kind, ("countdown", "arithmetic"))
        require_positive(
            "task", max_number=self.max_number, max_target=self.max_target, demonstrations=self.demonstrations
        )
        require_unit_interval("task", held_out_share=self.held_out_share)
        if not 2 <= self.numbers <= 6:
            raise ValueError(f"task.numbers={self.numbers} is outside 2..6; a Countdown problem has that many numbers")
        unknown = [operator for operator in self.operators if operator not in OPERATORS]
        if unknown or not self.operators:
            raise ValueError(f"task.operators={self.operators!r} is not a selection of {''.join(OPERATORS)}")
