"""Sentences follow the numbers, also where the numbers disappoint."""

import math
import random
from statistics import fmean

import pytest

from fathom.config import TaskConfig
from fathom.report.findings import (
    Trend,
    describe_accuracy,
    describe_length,
    describe_result,
    describe_speculation,
    describe_task,
    judge_trend,
    list_findings,
)
from fathom.report.outcome import Evaluation, Outcome, RandomPlay, Share, SpeculativeCheck
from fathom.report.units import SPACE, TIMES


def noisy(mean: float, rise: float, steps: int = 200) -> list[float]:
    rng = random.Random(1)
    return [mean + rise * step / steps + rng.gauss(0, 0.02) for step in range(steps)]


def evaluation(sampled: float) -> Evaluation:
    share = Share(sampled, sampled - 0.03, sampled + 0.03)
    return Evaluation(sampled=share, greedy=share, problems=500, answers=1000, mean_tries=1.5, mean_length=16.0)


def outcome(
    before: float | None = None, after: float | None = None, control: float | None = None, play: float | None = None
) -> Outcome:
    return Outcome(
        before=None if before is None else evaluation(before),
        after=None if after is None else evaluation(after),
        sft_control=None if control is None else evaluation(control),
        random_play=None if play is None else RandomPlay(solved=Share(play, play - 0.03, play + 0.03), tries=1.4),
        speculation=None,
    )


def findings(result: Outcome) -> str:
    return " ".join(list_findings(result, None, None, TaskConfig(), 0)).replace(SPACE, " ")


@pytest.mark.parametrize(("rise", "direction"), [(0.3, "rose"), (-0.3, "fell"), (0.0, "flat"), (0.002, "flat")])
def test_a_trend_must_exceed_its_noise(rise: float, direction: str) -> None:
    trend = judge_trend(noisy(0.4, rise))
    assert trend is not None and trend.direction == direction


def test_ends_are_tenths() -> None:
    values = noisy(0.4, 0.3)
    trend = judge_trend(values)
    assert trend is not None and trend.steps == 20
    assert (trend.first, trend.last) == pytest.approx((fmean(values[:20]), fmean(values[-20:])))


def test_short_curves_and_gaps() -> None:
    assert judge_trend([1.0, 2.0, math.nan, 3.0]) is None
    trend = judge_trend([1.0, 1.0, math.nan, 2.0, 2.0])
    assert trend == Trend(first=1.0, last=2.0, steps=2, standard_error=0.0)
    assert trend is not None and trend.direction == "rose"
    constant = judge_trend([0.5] * 30)
    assert constant is not None and constant.direction == "flat"


def test_a_flat_accuracy_curve_is_called_flat() -> None:
    flat = Trend(first=0.3, last=0.31, steps=30, standard_error=0.01)
    rising = Trend(first=0.3, last=0.8, steps=30, standard_error=0.01)
    assert describe_accuracy(flat).startswith("The accuracy curve of GRPO is flat: from 30.0")
    assert "rose from 30.0" in describe_accuracy(rising) and "50 standard errors" in describe_accuracy(rising)
    assert "flat" not in describe_accuracy(rising)


def test_longer_thinking_is_never_claimed_unmeasured() -> None:
    shorter = Trend(first=16.2, last=13.1, steps=30, standard_error=0.1)
    assert "got shorter under GRPO, from 16.2 to 13.1 tokens" in describe_length(shorter)
    assert "does not show a model that thinks longer" in describe_length(shorter)
    same = Trend(first=16.2, last=16.3, steps=30, standard_error=0.1)
    assert "did not measurably change" in describe_length(same)
    longer = Trend(first=13.1, last=16.2, steps=30, standard_error=0.1)
    assert "got longer" in describe_length(longer) and "does not show better thinking" in describe_length(longer)


def test_controls_are_beaten_only_where_intervals_part() -> None:
    good = findings(outcome(before=0.26, after=0.83, control=0.45, play=0.37))
    assert "raised held-out sampled accuracy by 57.0 points" in good
    assert "beats random legal play with as many tries (1.4 a problem) by 46.0 points" in good
    assert "beats SFT alone for the same compute by 38.0 points" in good
    poor = findings(outcome(before=0.40, after=0.42, control=0.45, play=0.37))
    assert "did not measurably change held-out sampled accuracy" in poor
    assert "does not measurably beat random legal play" in poor and "does not measurably beat SFT alone" in poor
    assert "lowered held-out sampled accuracy by 30.0 points" in findings(outcome(before=0.6, after=0.3))


def test_what_was_not_measured_is_said() -> None:
    bare = findings(outcome(after=0.83))
    assert "Random legal play was not measured" in bare and "SFT alone for the same compute was not measured" in bare
    assert findings(outcome()).startswith("These are the losses of one run with one seed (0).")


def test_the_result_in_one_sentence() -> None:
    whole = describe_result(outcome(before=0.26, after=0.83, control=0.45, play=0.37)).replace(SPACE, " ")
    assert whole == (
        "On 500 held-out problems its sampled accuracy went from 26.0 % to 83.0 %; random legal play solves 37.0 % in "
        "as many tries; SFT alone, for the same compute, 45.0 %."
    )
    assert "its sampled accuracy is 26.0 %." in describe_result(outcome(before=0.26)).replace(SPACE, " ")
    assert "not evaluated" in describe_result(outcome())


@pytest.mark.parametrize(
    ("speed", "words"), [(300.0, "it is faster here: 1.50"), (180.0, "it is not faster here: 0.90")]
)
def test_speculation_is_reported_as_measured(speed: float, words: str) -> None:
    check = SpeculativeCheck(
        equal=speed > 200,
        answers=64,
        acceptance=0.7,
        by_position=(0.7, 0.6) if speed > 200 else (0.7,),
        tokens_per_step=1.7,
        plain_tokens_per_s=200.0,
        speculative_tokens_per_s=speed,
    )
    sentence = describe_speculation(check)
    assert words in sentence
    assert ("by position)" in sentence) == (speed > 200)
    assert ("are the same, token for token" in sentence) == check.equal
    assert ("not the same: a defect" in sentence) != check.equal


def test_tasks_in_words() -> None:
    assert describe_task(TaskConfig(operators="+/")) == (
        "Countdown (reach a target of at most 60 from 3 numbers of at most 20, each used once, with + and ÷)"
    )
    assert f"with +, \N{MINUS SIGN} and {TIMES})" in describe_task(TaskConfig(operators="+-*"))
    assert "with +)" in describe_task(TaskConfig(operators="+"))
