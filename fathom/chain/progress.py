"""What a person sees while stages run: a live bar with the remaining time, then one line a stage."""

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from fathom.chain.stage import Record
from fathom.report.alarms import alarms
from fathom.train.loop import Notify

SHOWN_METRICS = {
    "loss_main": "loss {:.3f}",
    "accuracy": "accuracy {:.2f}",
    "held_out_accuracy": "held out {:.2f}",
    "length": "length {:.1f}",
    "entropy": "entropy {:.2f}",
    "tokens_per_s": "{:,.0f} tokens/s",
    "rollout_tokens_per_s": "{:,.0f} sampled tokens/s",
}


ALARM_STEPS = 5  # between two looks for alarms


@contextmanager
def progress(console: Console, title: str, steps: int, before: Sequence[Mapping[str, Any]] = ()) -> Generator[Notify]:
    """A bar over `steps`; what it yields is told of every finished step.

    Reinforcement learning is watched: an alarm is told once, when it first rings. `before` are the metrics of steps
    that were made earlier.
    """
    columns = (
        TextColumn("  {task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[numbers]}"),
    )
    shown = steps > 0 and console.is_terminal and not console.quiet
    with Progress(*columns, console=console, transient=True, disable=not shown) as bar:
        history: list[Mapping[str, Any]] = list(before)
        told: set[str] = set()
        # measured at some steps only: the newest value stays in view
        held_out = {name: line[name] for line in before for name in line if name == "held_out_accuracy"}
        task = bar.add_task(title, total=steps, numbers="")

        def notify(step: int, metrics: dict[str, object]) -> None:
            held_out.update({name: metrics[name] for name in metrics if name == "held_out_accuracy"})
            bar.update(task, completed=step, numbers=describe_metrics({**held_out, **metrics}))
            if "reward" not in metrics:
                return
            history.append(metrics)
            if len(history) % ALARM_STEPS:
                return
            for alarm in (alarm for alarm in alarms(history) if alarm.name not in told):
                told.add(alarm.name)
                words = f"step {step}, alarm, {alarm.name}: {alarm.sign}; {alarm.remedy}"
                bar.console.print(words, style="bold red", highlight=False, soft_wrap=True)

        yield notify


def describe_metrics(metrics: dict[str, object]) -> str:
    """The numbers of a step worth watching."""
    return "  ".join(form.format(metrics[name]) for name, form in SHOWN_METRICS.items() if name in metrics)


def describe_stage(record: Record) -> str:
    """One line on a finished stage."""
    score = record.get("score") or {}
    parts: list[str] = []
    if "sampled" in score:
        low, high = score["sampled_low"], score["sampled_high"]
        parts.append(f"{score['sampled']:.1%} sampled ({low:.1%} to {high:.1%}), {score['greedy']:.1%} greedy")
    for name in (name for name in score if name.startswith(("pass@", "maj@")) and "_" not in name):
        parts.append(f"{score[name]:.1%} {name} ({score[f'{name}_low']:.1%} to {score[f'{name}_high']:.1%})")
    if "solved" in score:
        parts.append(f"{score['solved']:.1%} solved in {score['tries']:.2f} tries")
    if "acceptance" in score:
        speed = score["speculative_tokens_per_s"] / score["plain_tokens_per_s"]
        same = "same texts" if score["equal"] else "TEXTS DIFFER"
        parts.append(f"{same}, {score['acceptance']:.1%} of drafts accepted, {speed:.2f}x the speed")
    if record.get("loss") is not None:
        parts.append(f"loss {record['loss']:.3f}")
    if "vocabulary" in record:
        parts.append(f"{record['vocabulary']} entries, {record['tokens']:,} tokens")
    if budget := record.get("budget"):
        ended = {"budget": ", all that a further step leaves", "plateau": ", ended on a plateau"}.get(
            budget["stopped"], ""
        )
        parts.append(f"${budget['spent']:.2f} of ${budget['dollars']:.2f} spent{ended}; {budget['outlook']}")
    return ", ".join([*parts, f"{record['seconds']:.0f} s"])
