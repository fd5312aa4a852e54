"""What a run shows and what it does not, in sentences decided by its numbers."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, variance
from typing import Literal

from fathom.config import TaskConfig
from fathom.report.outcome import Evaluation, Outcome, RandomPlay, Share, SpeculativeCheck
from fathom.report.units import TIMES, percent, points

SMALLEST_END = 5  # steps averaged at each end of a short curve, where a tenth would be fewer
STANDARD_ERRORS = 2.0  # a change within this many is called flat


@dataclass(frozen=True, kw_only=True)
class Trend:
    """A curve's first tenth held against its last."""

    first: float  # mean of the first `steps` values
    last: float  # mean of the last ones
    steps: int
    standard_error: float  # of the difference of the two means

    @property
    def direction(self) -> Literal["rose", "fell", "flat"]:
        """What the curve did, as far as its own noise lets one say."""
        if abs(self.last - self.first) <= STANDARD_ERRORS * self.standard_error:
            return "flat"
        return "rose" if self.last > self.first else "fell"


def judge_trend(values: Sequence[float]) -> Trend | None:
    """The trend of a curve, values that are not finite left out; None where fewer than four are left."""
    known = [value for value in values if math.isfinite(value)]
    if len(known) < 4:
        return None
    steps = min(max(len(known) // 10, SMALLEST_END), len(known) // 2)
    first, last = known[:steps], known[-steps:]
    error = math.sqrt((variance(first) + variance(last)) / steps)
    return Trend(first=fmean(first), last=fmean(last), steps=steps, standard_error=error)


def describe_task(task: TaskConfig) -> str:
    """The problems of the run, in words."""
    if task.kind != "countdown":
        return task.kind
    signs = task.operators.replace("-", "\N{MINUS SIGN}").replace("*", TIMES).replace("/", "÷")
    operators = " and ".join([", ".join(signs[:-1]), signs[-1]] if len(signs) > 1 else signs)
    return (
        f"Countdown (reach a target of at most {task.max_target} from {task.numbers} numbers of at most "
        f"{task.max_number}, each used once, with {operators})"
    )


def describe_result(outcome: Outcome) -> str:
    """One sentence: how well the model solves held-out problems, beside what it must be compared with."""
    after = outcome.after or outcome.before
    if after is None:
        return "It was not evaluated on held-out problems: this page shows how it trained, not how well it solves."
    before = outcome.before if outcome.after else None
    change = f"went from {percent(before.sampled.value)} to" if before else "is"
    sentence = f"On {after.problems:,} held-out problems its sampled accuracy {change} {percent(after.sampled.value)}"
    if outcome.random_play:
        sentence += f"; random legal play solves {percent(outcome.random_play.solved.value)} in as many tries"
    if outcome.sft_control:
        sentence += f"; SFT alone, for the same compute, {percent(outcome.sft_control.sampled.value)}"
    return sentence + "."


def describe_accuracy(trend: Trend) -> str:
    """What the accuracy curve of GRPO did."""
    ends = (
        f"from {percent(trend.first)} (mean of the first {trend.steps} steps) to {percent(trend.last)} "
        f"(last {trend.steps})"
    )
    if trend.direction == "flat":
        return (
            f"The accuracy curve of GRPO is flat: {ends}, a change within two standard errors "
            f"({points(STANDARD_ERRORS * trend.standard_error)}). The curve does not show learning."
        )
    return f"During GRPO the accuracy of sampled answers {trend.direction} {ends}{_size(trend)}."


def describe_length(trend: Trend) -> str:
    """What the length of the answers did, without reading thought into it."""
    ends = f"{trend.first:.1f} to {trend.last:.1f} tokens{_size(trend)}"
    match trend.direction:
        case "fell":
            return f"Answers got shorter under GRPO, from {ends}. This run does not show a model that thinks longer."
        case "rose":
            return f"Answers got longer under GRPO, from {ends}. Length alone does not show better thinking."
        case "flat":
            return f"The length of answers did not measurably change under GRPO: {ends}."


def list_findings(
    outcome: Outcome, accuracy: Trend | None, length: Trend | None, task: TaskConfig, seed: int
) -> list[str]:
    """Every sentence of the closing section, strongest evidence first."""
    found: list[str] = []
    if outcome.before and outcome.after:
        found.append(_gain(outcome.before, outcome.after))
    if outcome.after:
        found.append(_against_random_play(outcome.after, outcome.random_play))
        found.append(_against_sft(outcome.after, outcome.sft_control))
    if accuracy:
        found.append(describe_accuracy(accuracy))
    if length:
        found.append(describe_length(length))
    if outcome.speculation:
        found.append(describe_speculation(outcome.speculation))
    found.append(_scope(task if found else None, seed))
    return found


def describe_speculation(check: SpeculativeCheck) -> str:
    """Whether drafting left the text as it was, and whether it paid."""
    same = (
        f"With the MTP module drafting, all {check.answers:,} greedy answers are the same, token for token"
        if check.equal
        else f"With the MTP module drafting, the greedy text of {check.answers:,} answers is not the same: a defect"
    )
    shares = ", ".join(percent(share) for share in check.by_position)
    places = f" ({shares} by position)" if len(check.by_position) > 1 else ""
    pace = "faster" if check.speed_ratio > 1 else "not faster"
    return (
        f"{same}. It keeps {percent(check.acceptance)} of the drafts{places} and emits {check.tokens_per_step:.2f} "
        f"tokens a step; measured, it is {pace} here: {check.speed_ratio:.2f} times the plain speed."
    )


def _scope(task: TaskConfig | None, seed: int) -> str:
    if task is None:
        return f"These are the losses of one run with one seed ({seed}). What the model can solve was not measured."
    return (
        f"All of this is one run with one seed ({seed}) on one kind of problem, {describe_task(task)}. "
        "It says nothing of other tasks, larger numbers or language at large."
    )


def _gain(before: Evaluation, after: Evaluation) -> str:
    change = after.sampled.value - before.sampled.value
    if after.sampled.is_above(before.sampled):
        verdict = f"GRPO raised held-out sampled accuracy by {points(change)}"
    elif before.sampled.is_above(after.sampled):
        verdict = f"GRPO lowered held-out sampled accuracy by {points(change)}"
    else:
        verdict = "GRPO did not measurably change held-out sampled accuracy"
    return f"{verdict}: {_with_interval(before.sampled)} before, {_with_interval(after.sampled)} after."


def _against_random_play(after: Evaluation, play: RandomPlay | None) -> str:
    if play is None:
        return "Random legal play was not measured: how much of the accuracy guessing would reach is unknown."
    other = f"random legal play with as many tries ({play.tries:.1f} a problem)"
    return _against(after.sampled, play.solved, other)


def _against_sft(after: Evaluation, control: Evaluation | None) -> str:
    if control is None:
        return "SFT alone for the same compute was not measured: whether reinforcement did better is unknown."
    return _against(after.sampled, control.sampled, "SFT alone for the same compute")


def _against(after: Share, control: Share, name: str) -> str:
    if after.is_above(control):
        return (
            f"After GRPO the model beats {name} by {points(after.value - control.value)}: {_with_interval(after)} "
            f"against {_with_interval(control)}."
        )
    return (
        f"After GRPO the model does not measurably beat {name}: {_with_interval(after)} against "
        f"{_with_interval(control)}."
    )


def _size(trend: Trend) -> str:
    if trend.standard_error == 0 or trend.direction == "flat":
        return ""
    return f", {abs(trend.last - trend.first) / trend.standard_error:.0f} standard errors"


def _with_interval(share: Share) -> str:
    return f"{percent(share.value)} ({100 * share.low:.1f} to {100 * share.high:.1f})"
