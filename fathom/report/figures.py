"""Which curves a run has to show, and what to look for in each."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fathom.report.charts import Bar, Line, draw_bars, draw_lines
from fathom.report.outcome import Outcome, Share

Records = Sequence[Mapping[str, Any]]
STAGES = {"pretrain": "pretraining", "sft": "SFT", "grpo": "GRPO"}  # stages with curves, in the order they run
SEVERAL = {"pass": "Solved by one of k answers (pass@k)", "maj": "Solved by the vote of k answers (maj@k)"}
TABLE_ROWS = 11  # rows of the table behind a chart, taken evenly over its steps


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A chart, what to see in it, and its numbers as a table."""

    name: str
    title: str
    caption: str
    svg: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True, kw_only=True)
class Card:
    """One headline figure."""

    label: str
    value: str
    lines: Sequence[str]
    is_result: bool = False


def series(records: Records, field: str) -> list[float]:
    """The values of one field, NaN where a step recorded none that is finite."""
    return [math.nan if record[field] is None else float(record[field]) for record in records if field in record]


def loss_figures(metrics: Mapping[str, Records]) -> list[Figure]:
    """Losses of pretraining and of SFT."""
    fields = {
        "loss_main": "next token",
        "loss_mtp": "token after (MTP)",
        "validation_loss": "validation, next token",
    }
    figures = [
        curves(
            f"loss-{stage}",
            f"Loss of {name}",
            "Cross-entropy in nats a token.",
            lines_of(metrics.get(stage, ()), fields),
        )
        for stage, name in STAGES.items()
        if stage != "grpo"
    ]
    return present(figures)


def reward_figures(grpo: Records) -> list[Figure]:
    """What reinforcement changed: accuracy, length, entropy, and how much of each batch taught something."""
    dropped = [_with_dropped_share(record) for record in grpo]
    figures = [
        curves(
            "reward",
            "Accuracy and reward",
            "Mean over the sampled answers to training problems, of every step.",
            lines_of(grpo, {"accuracy": "accuracy", "reward": "reward", "format": "well-formed"}),
            from_zero=True,
        ),
        curves(
            "accuracy-band",
            "Accuracy of sampled answers",
            "With its 95 % interval at every step, which knows that answers of a group are not independent.",
            lines_of(grpo, {"accuracy": "accuracy", "accuracy_low": "low", "accuracy_high": "high"}),
            percent=True,
            from_zero=True,
        ),
        curves(
            "held-out",
            "Held-out accuracy",
            "The same problems at every measurement, none of them trained on, one sampled answer each, with "
            "Wilson's 95 % interval; beside it the accuracy of training answers.",
            held_out_lines(grpo),
            percent=True,
            from_zero=True,
        ),
        *(_several(grpo, name, title) for name, title in SEVERAL.items()),
        curves(
            "behaviour",
            "Search and second thoughts",
            "Per answer: tries and new beginnings as parsed, or words such as wait and alternatively.",
            lines_of(grpo, {"tries": "tries", "backtracks": "new beginnings", "reflections": "second thoughts"}),
            from_zero=True,
        ),
        curves(
            "length",
            "Length of answers",
            "Tokens of a completion, thinking included; correct and wrong ones apart.",
            lines_of(grpo, {"length": "all", "length_correct": "correct", "length_wrong": "wrong"}),
            from_zero=True,
        ),
        curves(
            "entropy",
            "Entropy of the policy",
            "Nats a token, of the whole next-token distribution. Near zero, nothing new is tried.",
            lines_of(grpo, {"entropy": "entropy"}),
            from_zero=True,
        ),
        curves(
            "kl-clip",
            "Distance from the reference, and clips",
            "KL in nats a token, where there is a reference; share of trained tokens whose gradient a clip cuts.",
            lines_of(grpo, {"kl": "KL", "clip_high": "clipped above", "clip_low": "clipped below"}),
            from_zero=True,
        ),
        curves(
            "sampler-gap",
            "Sampler against trainer",
            "Differences of their log-probabilities in nats a token, and the mean k3.",
            lines_of(
                grpo, {"gap": "mean", "gap_max": "largest", "gap_k3": "mean k3", "engine_gap": "mean of the engine"}
            ),
            from_zero=True,
        ),
        curves(
            "drafts",
            "Drafts kept while sampling",
            "Share of the checked drafts of the MTP module that were kept.",
            lines_of(grpo, {"draft_acceptance": "kept"}),
            percent=True,
            from_zero=True,
        ),
        curves(
            "groups",
            "Groups that teach nothing",
            "Groups whose answers all earn the same are dropped; truncated answers reached the length limit.",
            lines_of(dropped, {"dropped_share": "groups dropped", "truncated": "answers truncated"}),
            percent=True,
            from_zero=True,
        ),
    ]
    return present(figures)


def _several(grpo: Records, name: str, title: str) -> Figure | None:
    """One curve for every k, at most as many as there are colours."""
    ks = sorted({int(field.partition("@")[2]) for line in grpo for field in line if field.startswith(f"{name}@")})
    caption = "Over the groups of every step, from their own answers, without bias."
    lines = lines_of(grpo, {f"{name}@{k}": f"k = {k}" for k in ks[-4:]})
    return curves(name, title, caption, lines, percent=True, from_zero=True)


def mtp_figures(metrics: Mapping[str, Records]) -> list[Figure]:
    """How often the MTP module guesses the token after next."""
    lines = [
        line
        for stage, name in STAGES.items()
        for line in lines_of(metrics.get(stage, ()), {"mtp_acceptance": f"during {name}"})
    ]
    caption = "Share of training tokens at which the MTP module's likeliest token is the model's own."
    return present([curves("mtp", "MTP acceptance", caption, lines, percent=True, from_zero=True)])


def outcome_figures(outcome: Outcome) -> list[Figure]:
    """Held-out accuracy and its controls as bars."""
    bars: list[Bar] = []
    if outcome.random_play:
        label = f"Random legal play, {outcome.random_play.tries:.1f} tries"
        bars.append(_bar(label, outcome.random_play.solved))
    for label, evaluation, tone in (
        ("SFT alone, same compute", outcome.sft_control, 0),
        ("Before GRPO", outcome.before, 2),
        ("After GRPO", outcome.after, 1),
    ):
        if evaluation:
            bars.append(_bar(f"{label}, sampled", evaluation.sampled, tone))
            bars.append(_bar(f"{label}, greedy", evaluation.greedy, tone, pale=True))
    if not bars:
        return []
    title = "Held-out problems solved"
    caption = "Whiskers are 95 % intervals. Grey bars are the controls: what guessing and more SFT would reach."
    rows = [[bar.label, *(f"{100 * share:.1f} %" for share in (bar.value, bar.low, bar.high))] for bar in bars]
    svg = draw_bars("accuracy", title, bars)
    columns = ("", "solved", "low", "high")
    return [Figure(name="accuracy", title=title, caption=caption, svg=svg, columns=columns, rows=rows)]


def _bar(label: str, share: Share, tone: int = 0, pale: bool = False) -> Bar:
    return Bar(label=label, value=share.value, low=share.low, high=share.high, tone=tone, pale=pale)


def held_out_lines(grpo: Records) -> list[Line]:
    """Held-out accuracy with its interval, and training's at the same steps; nothing where nobody measured it."""
    measured = [record for record in grpo if "held_out_accuracy" in record]
    names = {"held_out_accuracy": "held out", "held_out_low": "low", "held_out_high": "high", "accuracy": "training"}
    return lines_of(measured, names)


def lines_of(records: Records, fields: Mapping[str, str]) -> list[Line]:
    """A line for every field that some step holds a number for."""
    lines = [
        Line(
            label=label,
            steps=[record["step"] for record in records if field in record],
            values=series(records, field),
        )
        for field, label in fields.items()
    ]
    return [line for line in lines if np.isfinite(line.values).any()]


def curves(
    name: str, title: str, caption: str, lines: Sequence[Line], *, percent: bool = False, from_zero: bool = False
) -> Figure | None:
    """A chart of the lines with its table; None without lines."""
    if not lines:
        return None
    steps = sorted({step for line in lines for step in line.steps})
    rows = min(TABLE_ROWS, len(steps))
    shown = [steps[place * (len(steps) - 1) // max(rows - 1, 1)] for place in range(rows)]
    values = [dict(zip(line.steps, line.values, strict=True)) for line in lines]
    return Figure(
        name=name,
        title=title,
        caption=caption,
        svg=draw_lines(name, title, lines, percent=percent, from_zero=from_zero),
        columns=["step", *(line.label for line in lines)],
        rows=[[f"{step:,}", *(cell(known.get(step, math.nan), percent) for known in values)] for step in shown],
    )


def _with_dropped_share(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """The record with groups_dropped as a share of all groups sampled."""
    groups = (record.get("groups_kept") or 0) + (record.get("groups_dropped") or 0)
    return {**record, "dropped_share": record["groups_dropped"] / groups} if groups else record


def cell(value: float, percent: bool) -> str:
    """A number of a table."""
    if not math.isfinite(value):
        return "\N{EN DASH}"
    return f"{100 * value:.1f} %" if percent else f"{value:.4g}"


def present(figures: Sequence[Figure | None]) -> list[Figure]:
    """Those that there are."""
    return [figure for figure in figures if figure]
