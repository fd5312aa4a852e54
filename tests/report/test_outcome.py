"""Ledger lines become typed results."""

from typing import Any

import pytest

from fathom.report.outcome import Share, read_outcome

SCORE: dict[str, Any] = {
    "sampled": 0.5,
    "sampled_low": 0.4,
    "sampled_high": 0.6,
    "greedy": 0.7,
    "greedy_low": 0.6,
    "greedy_high": 0.8,
    "problems": 10,
    "answers": 20,
}


def test_the_last_result_counts() -> None:
    first = {"stage": "eval_after", "score": SCORE | {"sampled": 0.1}}
    outcome = read_outcome([first, {"stage": "eval_after", "score": SCORE}, {"stage": "sft", "score": 1.25}])
    assert outcome.after is not None
    assert outcome.after.sampled == Share(0.5, 0.4, 0.6)
    assert outcome.after.mean_tries is None
    assert (outcome.before, outcome.sft_control, outcome.random_play, outcome.speculation) == (None, None, None, None)


def test_the_speed_ratio_is_speculative_over_plain() -> None:
    score = {"equal": True, "acceptance": 0.7, "tokens_per_step": 1.7, "answers": 8}
    speeds = {"plain_tokens_per_s": 200.0, "speculative_tokens_per_s": 250.0}
    check = read_outcome([{"stage": "mtp_check", "score": score | speeds}]).speculation
    assert check is not None and check.speed_ratio == 1.25


def test_a_missing_figure_is_named() -> None:
    score = {name: value for name, value in SCORE.items() if name != "greedy_low"}
    with pytest.raises(ValueError, match="lacks 'greedy_low'; run that evaluation again"):
        read_outcome([{"stage": "eval_before", "score": score}])


def test_above_means_apart() -> None:
    assert Share(0.5, 0.4, 0.6).is_above(Share(0.3, 0.2, 0.39))
    assert not Share(0.5, 0.4, 0.6).is_above(Share(0.3, 0.2, 0.4))
