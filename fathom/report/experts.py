"""How the router used its experts: balance, where tokens went, and what redundant experts would gain."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float

from fathom.config import ModelConfig
from fathom.report import units
from fathom.report.charts import draw_heat_map
from fathom.report.figures import STAGES, Card, Figure, Records, cell, curves, lines_of, present

ROWS = 64  # experts whose load over time is drawn, those of whole layers
MOMENTS = 40  # columns of that map


def expert_figures(metrics: Mapping[str, Records], model: ModelConfig) -> list[Figure]:
    """How evenly the experts were used."""
    lines = [
        line
        for stage, name in STAGES.items()
        for line in lines_of(metrics.get(stage, ()), {"max_vio": f"during {name}"})
    ]
    balance = curves(
        "max-vio",
        "Load of the busiest expert",
        "MaxVio: by how much the busiest expert of the worst layer exceeds the mean load. 0 is perfect balance.",
        lines,
        from_zero=True,
    )
    return present([balance, _expert_shares(metrics, model), _loads_over_time(metrics, model)])


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
    layers = _layer_names(model, len(shares))
    title = "Where the tokens went"
    caption = (
        f"Share of each layer's routed tokens an expert received at step {record['step']:,} of {name}; "
        f"even would be {100 / shares.shape[1]:.3g} % each."
    )
    rows = [
        [layer, *(cell(float(share), percent=True) for share in row)]
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


def _loads_over_time(metrics: Mapping[str, Records], model: ModelConfig) -> Figure | None:
    """Every expert's load over the stage that recorded most steps, of the layers that were least even."""
    recorded = {stage: [record for record in metrics.get(stage, ()) if record.get("expert_shares")] for stage in STAGES}
    stage = max(recorded, key=lambda stage: len(recorded[stage]))
    layers = max((len(record["expert_shares"]) for record in recorded[stage]), default=0)
    records = [record for record in recorded[stage] if len(record["expert_shares"]) == layers]
    if len(records) < 2:
        return None
    bins = np.array_split(np.arange(len(records)), min(MOMENTS, len(records)))
    loads = np.array([np.mean([records[i]["expert_shares"] for i in chosen], axis=0) for chosen in bins])  # (M, L, E)
    loads /= np.maximum(loads.mean(axis=2, keepdims=True), 1e-9)
    names = _layer_names(model, layers)
    shown = _least_even(loads)
    rows = [f"{names[layer]}, expert {expert}" for layer in shown for expert in range(loads.shape[2])]
    table = loads[:, shown].reshape(len(loads), -1).T  # (rows, M)
    begins = [f"{records[chosen[0]]['step']:,}" for chosen in bins]
    some = [0, len(bins) // 2, len(bins) - 1] if len(bins) > 2 else range(len(bins))
    title = "Load of every expert over time"
    which = "" if len(shown) == layers else f" Of {layers} layers the {len(shown)} least even."
    return Figure(
        name="expert-loads",
        title=title,
        caption=f"Multiples of the mean load of its layer during {STAGES[stage]}: 1 is even, darker is busier.{which}",
        svg=draw_heat_map("expert-loads", title, table, rows, begins, "step"),
        columns=["", *(f"step {begins[moment]}" for moment in some)],
        rows=[
            [row, *(cell(float(values[m]), percent=False) for m in some)]
            for row, values in zip(rows, table, strict=True)
        ],
    )


def _least_even(loads: Float[np.ndarray, "M L E"]) -> list[int]:
    """Layers in order, those whose busiest experts exceed the mean most where not all fit."""
    room = max(1, ROWS // loads.shape[2])
    worst = np.argsort(-loads.max(axis=2).mean(axis=0), kind="stable")[:room]
    return sorted(int(layer) for layer in worst)


def _layer_names(model: ModelConfig, count: int) -> list[str]:
    """The MoE layers' names, MTP modules last."""
    layers = [f"layer {layer}" for layer in range(model.num_hidden_layers) if model.is_moe_layer(layer)]
    return [*layers, *(f"MTP {depth}" for depth in range(1, 1 + count - len(layers)))]


def placement_cards(metrics: Mapping[str, Records]) -> list[Card]:
    """What redundant experts would gain, by the last forecast of the run."""
    forecasts = [
        record["placement"] for stage in STAGES for record in metrics.get(stage, ()) if record.get("placement")
    ]
    if not forecasts:
        return []
    last = forecasts[-1]
    devices, slots = last["devices"], last["slots"]
    return [
        Card(
            label=f"Experts in equal runs over {devices} devices",
            value=f"+{units.percent(last['before'])}",
            lines=("what the busiest device has above the mean",),
        ),
        Card(
            label="With redundant experts (EPLB)",
            value=f"+{units.percent(last['after'])}",
            lines=(
                f"{slots} slots a layer, placed by the loads of the window before",
                f"+{units.percent(last['hindsight'])} if placed by its own",
            ),
            is_result=True,
        ),
    ]
