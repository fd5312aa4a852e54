"""Tasks: the problems that reinforcement learning and evaluation pose."""

from dataclasses import dataclass
from typing import Literal

from fathom.config.checks import require_choice, require_positive, require_unit_interval

OPERATORS = ("+", "-", "*", "/")
# most of what `numbers` counts: operands, list entries, letters, people; a search or an enumeration ends there
MOST = {
    "countdown": 6,
    "arithmetic": 6,
    "multiplication": 2,
    "equation": 2,
    "sorting": 20,
    "strings": 20,
    "logic": 5,
    "grid": 12,
}
FROM_FILES = ("jsonl", "code", "custom")
KINDS = (*MOST, *FROM_FILES, "gym", "kernels")


@dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """Countdown: reach a target from given numbers, each used once (TinyZero's task); or one of its kin."""

    # or arithmetic, multiplication, equation, sorting, strings, logic, grid; jsonl, code, custom (from `file`); gym;
    # kernels
    kind: str = "countdown"
    numbers: int = 3  # how many numbers are given; entries to sort, letters, people, empty cells of a grid
    fewest_numbers: int = 0  # draw their count between this and `numbers` (TinyZero: 3 and 4); 0 always takes `numbers`
    max_number: int = 20
    max_target: int = 60
    operators: str = "+-"
    max_failed_tries: int = 1  # failed attempts a worked solution may show before it succeeds
    demonstrations: int = 2000  # worked solutions in the cold-start set (R1 2.3.1: thousands)
    held_out_share: float = 0.125  # share of all problems, by hash, kept for evaluation
    # what stands around a question: {question}, or for Countdown {numbers} and {target}; "words" for the task's own
    prompt: str = ""
    file: str = ""  # JSONL of problems (jsonl, code; nums and target for countdown), or a task of your own in Python
    name: str = ""  # generator of reasoning-gym (kind gym)
    math_verify: bool = False  # ask math-verify, in a child process, where answers differ in form (extra rl)
    check_seconds: float = 5.0  # wall time of one check in a child process
    # where kernels run: the CPU interpreter pays right ones 1, a GPU pays half for that and half for speed
    kernel_device: Literal["interpreter", "gpu"] = "interpreter"
    # of child processes from network and files: require refuses where there is none, limits does without
    isolation: Literal["require", "limits"] = "require"

    def __post_init__(self) -> None:
        require_choice("task", "kind", self.kind, KINDS)
        require_choice("task", "kernel_device", self.kernel_device, ("interpreter", "gpu"))
        require_choice("task", "isolation", self.isolation, ("require", "limits"))
        require_positive(
            "task",
            max_number=self.max_number,
            max_target=self.max_target,
            demonstrations=self.demonstrations,
            check_seconds=self.check_seconds,
        )
        require_unit_interval("task", held_out_share=self.held_out_share)
        most = MOST.get(self.kind, max(MOST.values()))
        if not 2 <= self.numbers <= most:
            posed = "a Countdown problem" if self.kind == "countdown" else f"a problem of kind {self.kind}"
            raise ValueError(f"task.numbers={self.numbers} is outside 2..{most}; {posed} has that many numbers")
        if self.fewest_numbers and not 2 <= self.fewest_numbers <= self.numbers:
            raise ValueError(
                f"task.fewest_numbers={self.fewest_numbers} is outside 2..{self.numbers}, which ends at task.numbers; "
                "0 always takes task.numbers"
            )
        unknown = [operator for operator in self.operators if operator not in OPERATORS]
        if unknown or not self.operators:
            raise ValueError(f"task.operators={self.operators!r} is not a selection of {''.join(OPERATORS)}")
        if self.kind in FROM_FILES and not self.file:
            raise ValueError(f"task.kind={self.kind} reads its problems from a file; name it with task.file")
        if self.kind == "gym" and not self.name:
            raise ValueError(
                "task.kind=gym needs the name of a generator of reasoning-gym; set task.name=chain_sum, say"
            )
        self._check_prompt()

    def _check_prompt(self) -> None:
        held = [word for word in ("{question}", "{numbers}", "{target}") if word in self.prompt]
        if self.prompt in ("", "words") or held == ["{question}"]:
            return
        if held != ["{numbers}", "{target}"] or self.kind != "countdown":
            raise ValueError(
                f"task.prompt={self.prompt!r} does not say where the question goes; write {{question}} into it once, "
                "or {numbers} and {target} for Countdown"
            )
