"""The live view: an alarm is told once, when it first rings."""

import io

from rich.console import Console

from fathom.chain.progress import progress


def test_an_alarm_is_told_once_and_counts_the_steps_before_a_resume() -> None:
    told = io.StringIO()
    lines = [{"reward": 0.1, "accuracy": 0.1, "entropy": max(0.01, 1 - step / 30)} for step in range(60)]
    with progress(Console(file=told, width=200), "GRPO", 60, lines[:30]) as notify:
        for step, line in enumerate(lines[30:], 31):
            notify(step, dict(line))
    assert told.getvalue().count("alarm, entropy collapse") == 1
    assert "clip_high" in told.getvalue()
    quiet = io.StringIO()
    with progress(Console(file=quiet, width=200), "GRPO", 60) as notify:
        for step in range(60):
            notify(step, {"reward": 0.1 + step / 100, "accuracy": 0.1 + step / 100, "entropy": 1.0})
    assert "alarm" not in quiet.getvalue()
