"""What the page of a plan says, from the plan as `fathom plan --json` prints it.

Read are `model` (name, total, active, parts, active_parts), `memory` (parts, device_bytes, fits, fix), `schedule`
(schedule, ranks, micro_batches, times), `cost` (lines, excluded), `layouts` and `command`. Any of it may be missing,
and whatever else the plan holds is shown in tables under its own names.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from fathom.report import plan_figures, units
from fathom.report.amounts import amount, days, memory, name, price, words
from fathom.report.figures import Card
from fathom.report.plan_figures import device_bytes
from fathom.report.sheets import Grid, Sheets, grid, sheets

Plan = Mapping[str, Any]
SHOWN = {
    "model",
    "cache",
    "flops",
    "checkpoint",
    "memory",
    "layout",
    "schedule",
    "cost",
    "serving",
    "layouts",
    "command",
}
SUMS = ("hours", "gpu_hours", "dollars", "energy_kwh")


def gather_plan(plan: Plan) -> dict[str, Any]:
    """Everything the template names."""
    model, room, lines = plan.get("model") or {}, plan.get("memory") or {}, cost_lines(plan)
    return {
        "name": _title(plan),
        "lead": _lead(model, lines),
        "facts": _facts(plan.get("layout") or {}),
        "cards": _cards(model, room, lines),
        "parameter_figures": plan_figures.parameter_figures(model),
        "counts": _counts(plan),
        "memory_figures": plan_figures.memory_figures(room),
        "memory_sentence": _room(room),
        "pipeline": plan_figures.pipeline(plan.get("schedule") or _schedule(plan.get("layout") or {})),
        "cost_figures": plan_figures.cost_figures(lines),
        "cost": _bill(lines),
        "notes": _notes(lines),
        "excluded": _cost(plan).get("excluded") or [],
        "assumed": sheets("cost", "Assumed", {key: value for key, value in _cost(plan).items() if _is_assumed(key)}),
        "serving": sheets("serving", "Server", plan.get("serving")),
        "layouts": grid("Layouts", map(_found, plan["layouts"])) if plan.get("layouts") else None,
        "command": plan.get("command") or "",
        "others": {key: sheets(key, name(key), part) for key, part in plan.items() if key not in SHOWN and part},
    }


def cost_lines(plan: Plan) -> list[Mapping[str, Any]]:
    """The stages on the bill."""
    cost = plan.get("cost") or []
    return list(cost.get("lines", ()) if isinstance(cost, Mapping) else cost)


def total_cost(lines: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Sums over the stages that the bill includes."""
    return {field: sum(line.get(field) or 0 for line in lines if line.get("included", True)) for field in SUMS}


def short_price(dollars: float) -> str:
    """Money to three digits, in millions from one up."""
    return f"${dollars / 1e6:.2f}{units.SPACE}M" if dollars >= 1e6 else price(dollars)


def _title(plan: Plan) -> str:
    model, schedule = plan.get("model") or {}, plan.get("schedule") or {}
    return str(model.get("name") or schedule.get("schedule") or schedule.get("name") or "A plan")


def _lead(model: Mapping[str, Any], lines: Sequence[Mapping[str, Any]]) -> list[str]:
    sentences: list[str] = []
    if model.get("total") and model.get("active"):
        sentences.append(
            f"{units.size(model['total'])} parameters, of which one token uses {units.size(model['active'])}, "
            f"{units.percent(model['active'] / model['total'])}."
        )
    spent = total_cost(lines)
    if spent["dollars"]:
        stages = "The stages counted here take" if len(lines) > 1 else "Training it takes"
        sentences.append(
            f"{stages} {_whole(spent['gpu_hours'])} GPU-hours, {days(spent['hours'])} by the clock, and cost "
            f"{price(spent['dollars'])}."
        )
    return sentences


def _facts(layout: Mapping[str, Any]) -> list[str]:
    """How a step is spread; ways that are not used go unsaid."""
    unused = {"schedule"} if layout.get("pipeline", 1) == 1 else set[str]()
    used = {field: value for field, value in layout.items() if value not in (1, "none", None) and field not in unused}
    return [f"{name(field)} {amount(field, value)}" for field, value in used.items()]


def _schedule(layout: Mapping[str, Any]) -> Mapping[str, Any]:
    """The layout's pipeline; its times are not known, so they are taken as equal."""
    if layout.get("pipeline", 1) == 1 or not layout.get("micro_batches"):
        return {}
    return {
        "schedule": layout.get("schedule", "1f1b"),
        "ranks": layout["pipeline"],
        "micro_batches": layout["micro_batches"],
        "times": {"F": 1.0, "B": 1.0, "W": 1.0},
        "note": "How long each really takes is not known here: the three are taken as equal.",
    }


def _found(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """A layout of the search, its ways of spreading in words."""
    layout = row.get("layout")
    if not isinstance(layout, Mapping):
        return row
    ways = ", ".join(f"{words(way)} {amount(way, value)}" for way, value in layout.items())
    return {**row, "layout": ways or "plain"}


def _cards(model: Mapping[str, Any], room: Mapping[str, Any], lines: Sequence[Mapping[str, Any]]) -> list[Card]:
    spent, cards = total_cost(lines), list[Card]()
    if model.get("total"):
        counts = {"in all": model["total"], "a token": model.get("active")}
        counts["without embedding"] = model.get("active_without_embedding")
        words = [f"{count:,} {which}" for which, count in counts.items() if count]
        cards.append(Card(label="Parameters", value=units.size(model["total"]), lines=words))
    if room.get("parts"):
        total, device = sum(room["parts"].values()), device_bytes(room)
        words = [f"of {memory(device)} usable" + ("" if _fits(room) else ": does not fit")] if device else []
        cards.append(Card(label="Memory of a device", value=memory(total), lines=words))
    if spent["hours"]:
        words = [f"{_whole(spent['gpu_hours'])} GPU-hours"]
        cards.append(Card(label="Time", value=days(spent["hours"]), lines=words))
    if spent["dollars"]:
        words = [amount("energy_kwh", spent["energy_kwh"])] if spent["energy_kwh"] else []
        cards.append(Card(label="Cost", value=short_price(spent["dollars"]), lines=words, is_result=True))
    return cards


def _counts(plan: Plan) -> Sheets:
    titles = {"checkpoint": "On disk", "flops": "Operations a token", "cache": "Cache a token"}
    found = [sheets(key, title, plan.get(key), nested=True) for key, title in titles.items()]
    return Sheets(pairs=[table for part in found for table in part.pairs])


def _fits(room: Mapping[str, Any]) -> bool:
    device = device_bytes(room)
    return bool(room.get("fits", not device or sum(room["parts"].values()) <= device))


def _room(room: Mapping[str, Any]) -> str:
    device = device_bytes(room)
    if not device or not room.get("parts"):
        return str(room.get("fix") or "")
    left = device - sum(room["parts"].values())
    if _fits(room):
        return f"It fits, with {memory(left)} to spare."
    remedy = f" With {room['fix']} it would." if room.get("fix") else ""
    return f"It does not fit, by {memory(-left)}.{remedy}"


def _cost(plan: Plan) -> Mapping[str, Any]:
    cost = plan.get("cost")
    return cost if isinstance(cost, Mapping) else {}


def _is_assumed(key: str) -> bool:
    return key not in ("lines", "total", "excluded")


def _bill(lines: Sequence[Mapping[str, Any]]) -> Grid | None:
    if not lines:
        return None
    fields = ("tokens", *SUMS)
    spent = {"tokens": None} | total_cost(lines)
    counted = [line for line in lines if line.get("included", True)]
    apart = [line for line in lines if not line.get("included", True)]
    return Grid(
        title="Cost of each stage",
        columns=["stage", "tokens", "by the clock", "GPU-hours", "dollars", "energy"],
        rows=[
            *([_named(line), *(amount(field, line.get(field)) for field in fields)] for line in counted),
            ["Total", *(amount(field, spent[field]) for field in fields)],
            *([_named(line), *(amount(field, line.get(field)) for field in fields)] for line in apart),
        ],
    )


def _named(line: Mapping[str, Any]) -> str:
    return plan_figures.stage_name(line) + ("" if line.get("included", True) else " (not included)")


def _notes(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """Each note once, after the stages that it is about."""
    about: dict[str, list[str]] = {}
    for line in lines:
        about.setdefault(line.get("note") or "", []).append(plan_figures.stage_name(line))
    return [f"{', '.join(stages)}: {note}" for note, stages in about.items() if note]


def _whole(hours: float) -> str:
    return f"{hours:,.0f}" if hours >= 10 else f"{hours:.2g}"
