"""Which curves a run has to show, and what to look for in each."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fathom.config import ModelConfig
from fathom.report.charts import Bar, Line, draw_bars, draw_heat_map, draw_lines
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
        _curves(
            f"loss-{stage}",
            f"Loss of {name}",
            "Cross-entropy in nats a token.",
            _lines(metrics.get(stage, ()), fields),
        )
        for stage, name in STAGES.items()
        if stage != "grpo"
    ]
    return _present(figures)


def reward_figures(grpo: Records) -> list[Figure]:
    """What reinforcement changed: accuracy, length, entropy, and how much of each batch taught something."""
    dropped = [_with_dropped_share(record) for record in grpo]
    figures = [
        _curves(
            "reward",
            "Accuracy and reward",
            "Mean over the sampled answers to training problems, of every step.",
            _lines(grpo, {"accuracy": "accuracy", "reward": "reward", "format": "well-formed"}),
            from_zero=True,
        ),
        _curves(
            "accuracy-band",
            "Accuracy of sampled answers",
            "With its 95 % interval at every step, which knows that answers of a group are not independent.",
            _lines(grpo, {"accuracy": "accuracy", "accuracy_low": "low", "accuracy_high": "high"}),
            percent=True,
            from_zero=True,
        ),
        *(_several(grpo, name, title) for name, title in SEVERAL.items()),
        _curves(
            "behaviour",
            "Search and second thoughts",
            "Per answer: tries and new beginnings as parsed, or words such as wait and alternatively.",
            _lines(grpo, {"tries": "tries", "backtracks": "new beginnings", "reflections": "second thoughts"}),
            from_zero=True,
        ),
        _curves(
            "length",
            "Length of answers",
            "Tokens of a completion, thinking included; correct and wrong ones apart.",
            _lines(grpo, {"length": "all", "length_correct": "correct", "length_wrong": "wrong"}),
            from_zero=True,
        ),
        _curves(
            "entropy",
            "Entropy of the policy",
            "Nats a token, of the whole next-token distribution. Near zero, nothing new is tried.",
            _lines(grpo, {"entropy": "entropy"}),
            from_zero=True,
        ),
        _curves(
            "kl-clip",
            "Distance from the reference, and clips",
            "KL in nats a token, where there is a reference; share of trained tokens whose gradient a clip cuts.",
            _lines(grpo, {"kl": "KL", "clip_high": "clipped above", "clip_low": "clipped below"}),
            from_zero=True,
        ),
        _curves(
            "sampler-gap",
            "Sampler against trainer",
            "Differences of their log-probabilities in nats a token, and the mean k3.",
            _lines(
                grpo, {"gap": "mean", "gap_max": "largest", "gap_k3": "mean k3", "engine_gap": "mean of the engine"}
            ),
            from_zero=True,
        ),
        _curves(
            "drafts",
            "Drafts kept while sampling",
            "Share of the checked drafts of the MTP module that were kept.",
            _lines(grpo, {"draft_acceptance": "kept"}),
            percent=True,
            from_zero=True,
        ),
        _curves(
            "groups",
            "Groups that teach nothing",
            "Groups whose answers all earn the same are dropped; truncated answers reached the length limit.",
            _lines(dropped, {"dropped_share": "groups dropped", "truncated": "answers truncated"}),
            percent=True,
            from_zero=True,
        ),
    ]
    return _present(figures)


def _several(grpo: Records, name: str, title: str) -> Figure | None:
    """One curve for every k, at most as many as there are colours."""
    ks = sorted({int(field.partition("@")[2]) for line in grpo for field in line if field.startswith(f"{name}@")})
    caption = "Over the groups of every step, from their own answers, without bias."
    lines = _lines(grpo, {f"{name}@{k}": f"k = {k}" for k in ks[-4:]})
    return _curves(name, title, caption, lines, percent=True, from_zero=True)


def expert_figures(metrics: Mapping[str, Records], model: ModelConfig) -> list[Figure]:
    """How evenly the experts were used."""
    lines = [
        line for stage, name in STAGES.items() for line in _lines(metrics.get(stage, ()), {"max_vio": f"during {name}"})
    ]
    balance = _curves(
        "max-vio",
        "Load of the busiest expert",
        "MaxVio: by how much the busiest expert of the worst layer exceeds the mean load. 0 is perfect balance.",
        lines,
        from_zero=True,
    )
    return _present([balance, _expert_shares(metrics, model)])


def mtp_figures(metrics: Mapping[str, Records]) -> list[Figure]:
    """How often the MTP module guesses the token after next."""
    lines = [
        line
        for stage, name in STAGES.items()
        for line in _lines(metrics.get(stage, ()), {"mtp_acceptance": f"during {name}"})
    ]
    caption = "Share of training tokens at which the MTP module's likeliest token is the model's own."
    return _present([_curves("mtp", "MTP acceptance", caption, lines, percent=True, from_zero=True)])


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


def _lines(records: Records, fields: Mapping[str, str]) -> list[Line]:
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


def _curves(
    name: str, title: str, caption: str, lines: Sequence[Line], *, percent: bool = False, from_zero: bool = False
) -> Figure | None:
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
        rows=[[f"{step:,}", *(_cell(known.get(step, math.nan), percent) for known in values)] for step in shown],
    )


def _expert_shares(metrics: Mapping[str, Records], model: ModelConfig) -> Figure | None:
    """The heat map of the last step that recorded where every layer's tokens went."""
    recorded = [
        (name, record)
        for stage, name in STAGES.items()
        for record in metrics.get(stage, ())
        if record.get("expert_shares")
    ]
    if not recorded:
        return None
    name, record = recorded[-1]
    shares = np.asarray(record["expert_shares"], dtype=float)  # (layers, experts)
    shares /= np.maximum(shares.sum(axis=1, keepdims=True), 1e-9)
    layers = [f"layer {layer}" for layer in range(model.num_hidden_layers) if model.is_moe_layer(layer)]
    layers += [f"MTP {depth}" for depth in range(1, 1 + len(shares) - len(layers))]
    title = "Where the tokens went"
    caption = (
        f"Share of each layer's routed tokens an expert received at step {record['step']:,} of {name}; "
        f"even would be {100 / shares.shape[1]:.3g} % each."
    )
    rows = [
        [layer, *(_cell(float(share), percent=True) for share in row)]
        for layer, row in zip(layers, shares, strict=False)
    ]
    return Figure(
        name="expert-share",
        title=title,
        caption=caption,
        svg=draw_heat_map("expert-share", title, shares, layers[: len(shares)]),
        columns=["", *(f"expert {expert}" for expert in range(shares.shape[1]))],
        rows=rows,
    )


def _with_dropped_share(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """The record with groups_dropped as a share of all groups sampled."""
    groups = (record.get("groups_kept") or 0) + (record.get("groups_dropped") or 0)
    return {**record, "dropped_share": record["groups_dropped"] / groups} if groups else record


def _cell(value: float, percent: bool) -> str:
    if not math.isfinite(value):
        return "\N{EN DASH}"
    return f"{100 * value:.1f} %" if percent else f"{value:.4g}"


def _present(figures: Sequence[Figure | None]) -> list[Figure]:
    return [figure for figure in figures if figure]
