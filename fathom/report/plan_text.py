"""A plan in the terminal: one short table for each question that it answers."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from fathom.plan.drawing import draw
from fathom.plan.prediction import Compared
from fathom.plan.timeline import Cell, Timeline, Times
from fathom.report.units import MISSING, TIMES, count, dollars, duration, percent, size

Part = dict[str, Any]

INDENT = 2  # columns before a table, and between its own
BAR = 28  # columns of the longest bar
OTHER_COLUMNS = 72  # what stands before it in the widest table
EIGHTHS = " ▏▎▍▌▋▊▉"
LAYOUT_HEADS = ("data", "FSDP", "expert", "pipeline", "context", "passes", "recompute")
CHECK = "\N{CHECK MARK}"
PART_NAMES = {"mtp": "multi-token prediction"}
DTYPE_NAMES = {"fp8": "FP8", "bfloat16": "BF16", "float32": "FP32"}


def show_plan(plan: Part, console: Console) -> None:
    """Print every section that `plan` has."""
    sections = {
        "model": _show_model,
        "flops": _show_flops,
        "cache": _show_cache,
        "checkpoint": _show_checkpoint,
        "serving": _show_serving,
        "published": _show_published,
        "memory": _show_memory,
        "layouts": _show_layouts,
        "cost": _show_cost,
        "command": _show_command,
    }
    for name, show in sections.items():
        if plan.get(name):
            show(plan[name], console)


def show_pipeline(schedule: Part, console: Console) -> None:
    """Draw a pipeline, and print the idle time of the schedules with as many stages."""
    cells = [Cell(**cell) for cell in schedule["cells"]]
    timeline = Timeline(
        schedule=schedule["schedule"],
        ranks=schedule["ranks"],
        micro_batches=schedule["micro_batches"],
        times=Times(**schedule["times"]),
        cells=cells,
    )
    print(draw(timeline, console.width, color=console.is_terminal))
    table = _table("bubble by formula", "devices", "idle time")
    for row in schedule["bubbles"]:
        style = "bold" if row["schedule"] == schedule["schedule"] else ""
        table.add_row(row["schedule"], count(row["devices"]), f"{row['bubble']:g}", style=style)
    console.print(table)


def _show_model(model: Part, console: Console) -> None:
    console.print(
        f"\n[bold]{escape(model['name'])}[/bold]  {size(model['total'])} parameters, "
        f"{size(model['active_without_embedding'])} at work on each token"
    )
    _title(console, "Where the parameters are")
    table = _table("", "parameters", "share", "per token", "")
    largest, room = max(model["parts"].values()), max(8, min(BAR, console.width - OTHER_COLUMNS))
    for name, parameters in sorted(model["parts"].items(), key=lambda part: -part[1]):
        if parameters and name != "mtp":
            bar = Text(_bar(parameters / largest, room), style="cyan")
            share = percent(parameters / model["total"])
            table.add_row(name, size(parameters), share, size(model["active_parts"][name]), bar)
    table.add_row("total", count(model["total"]), "", count(model["active"]), style="bold")
    table.add_row("without input embedding", "", "", count(model["active_without_embedding"]), style="dim")
    if model["mtp"]:
        table.add_row(PART_NAMES["mtp"], count(model["mtp"]), "", "training, drafts", style="dim")
    console.print(table)


def _show_flops(flops: Part, console: Console) -> None:
    _title(console, "Arithmetic per token")
    table = _table("", "operations", "")
    extra = flops["training_with_mtp"] - flops["training"]
    beside = [f"+ {si(extra, 'FLOP')} for multi-token prediction"] if extra else []
    beside.append(f"{si(flops['training_non_causal'], 'FLOP')} if attention is counted both ways")
    table.add_row("training", si(flops["training"], "FLOP"), _dim("; ".join(beside)))
    table.add_row("reading a prompt", si(flops["prefill"], "FLOP"), _dim(f"of {flops['seq_len']:,} tokens"))
    table.add_row("writing", si(flops["decode"], "FLOP"), _dim(f"behind {flops['context']:,} tokens"))
    console.print(table)


def _show_cache(cache: Part, console: Console) -> None:
    _title(console, "Memory of each past token (key-value cache)")
    table = _table("", "bytes", "")
    whole = cache["bytes"]["BF16"]
    for name, amount in cache["bytes"].items():
        table.add_row(f"this model, {name}", count(amount), "")
    for name, amount in cache["alternatives"].items():
        if amount != whole:
            table.add_row(f"if it were {name}", count(amount), _dim(f"{amount / whole:.3g} times as much"))
    console.print(table)


def _show_checkpoint(checkpoint: Part, console: Console) -> None:
    sizes = "   ".join(f"{name} [bold]{si(amount, 'B')}[/bold]" for name, amount in checkpoint["bytes"].items())
    _title(console, "On disk")
    _say(console, sizes)


def _show_memory(memory: Part, console: Console) -> None:
    _title(console, "Training memory of the fullest device")
    if "total" not in memory:
        _say(console, escape(memory["fix"]))
        return
    table = _table("", "bytes", "")
    for name, amount in memory["parts"].items():
        if amount:
            table.add_row(name, si(amount, "B"), Text(_bar(amount / memory["device_bytes"], BAR), style="cyan"))
    table.add_row("total", si(memory["total"], "B"), f"of {si(memory['device_bytes'], 'B')}", style="bold")
    console.print(table)
    if not memory["fits"]:
        over = si(memory["total"] - memory["device_bytes"], "B")
        remedy = f"; {memory['fix']} would make it fit" if memory["fix"] else "; no single change makes it fit"
        _say(console, f"[bold red]It does not fit[/bold red] by {over}{remedy}.")


def _show_layouts(layouts: list[Part], console: Console) -> None:
    _title(console, "Ways to spread a step, best first" if len(layouts) > 1 else "How a step is spread")
    found = [_describe_layout(row["layout"]) for row in layouts]
    heads = [head for head in LAYOUT_HEADS if any(layout.get(head) for layout in found)]
    table = _table("", *heads, "tokens/s", "GB")
    for row, layout in zip(layouts, found, strict=True):
        mark, memory = CHECK if row["runs_in_fathom"] else "", f"{row['peak_memory_bytes'] / 1e9:,.1f}"
        table.add_row(mark, *(layout.get(head, "") for head in heads), count(row["tokens_per_s"]), memory)
    console.print(table)
    if any(row["runs_in_fathom"] for row in layouts):
        own = f"{CHECK} `fathom pretrain` runs it"
    else:
        own = "`fathom pretrain` knows replicas alone, and runs none of these"
    _say(console, f"[dim]Passes {TIMES} rows of each make a step; {own}.[/dim]")


def _describe_layout(layout: Part) -> dict[str, str]:
    """What differs from a plain device, in few words."""
    words = {name: str(value) for name, value in layout.items()}
    passes, rows = layout.get("micro_batches", 1), layout.get("micro_batch_rows", 1)
    schedule = layout.get("schedule", "1f1b") if "pipeline" in layout else ""
    return words | {
        "FSDP": f"{layout['shard']} ZeRO-{layout.get('zero', 1)}" if "shard" in layout else "",
        "pipeline": f"{layout['pipeline']} {schedule}" if schedule else "",
        "passes": f"{passes:,} {TIMES} {rows}" if passes * rows > 1 else "",
        "recompute": {"selective": "some", "full": "all"}.get(words.get("recompute", ""), ""),
    }


def _show_command(command: str, console: Console) -> None:
    _title(console, "To run it")
    console.print(INDENT * " " + command, markup=False, highlight=False, soft_wrap=True)
    if command.endswith("--out RUN"):
        _say(console, "[dim]This config is no preset's: give this plan --out RUN too, and RUN keeps it.[/dim]")


def show_comparison(stages: Mapping[str, list[Compared]], console: Console) -> None:
    """Print what was predicted beside what was measured."""
    for stage, figures in stages.items():
        _title(console, f"{stage}: predicted and measured")
        table = _table("", "predicted", "measured", "error")
        for figure in figures:
            numbers = (plain(number) for number in (figure.predicted, figure.measured))
            table.add_row(figure.name.replace("_", " "), *numbers, f"{figure.error:+.1%}")
        console.print(table)


def _show_cost(cost: Part, console: Console) -> None:
    _title(console, f"Cost on {cost['devices']} at {dollars(cost['dollars_per_hour'])} an hour each")
    table = _table("stage", "tokens", "time", "GPU-hours", "dollars", "energy")
    for line in cost["lines"]:
        if line["included"]:
            _add_line(table, line)
    _add_line(table, cost["total"], style="bold")
    for line in (line for line in cost["lines"] if not line["included"]):
        _add_line(table, line, style="dim")
    console.print(table)
    others = "the lines below it; " if any(not line["included"] for line in cost["lines"]) else ""
    left_out = f"[bold]Not in that sum:[/bold] {others}{'; '.join(cost['excluded'])}."
    without = f", {percent(cost['mfu_without_mtp'])} if MTP is not counted" if cost["mfu_without_mtp"] else ""
    speed = (
        f"[dim]The price is {cost['price_source']}. "
        f"{count(cost['tokens_per_s'])} tokens/s in pretraining, {percent(cost['mfu'])} of the devices' peak"
        f"{without} ({cost['mfu_source']}). "
        f"{plain(cost['tokens_per_active_parameter'])} tokens for each active parameter.[/dim]"
    )
    for note in dict.fromkeys(line["note"] for line in cost["lines"] if line["note"]):
        names = ", ".join(line["name"] for line in cost["lines"] if line["note"] == note)
        _say(console, f"[dim]{names}: {note}.[/dim]")
    _say(console, left_out)
    _say(console, speed)


def _add_line(table: Table, line: Part, style: str = "") -> None:
    tokens = size(line["tokens"]) if line["tokens"] else ""
    energy = si(1000 * line["energy_kwh"], "Wh") if line["gpu_hours"] else MISSING
    hours = f"{line['gpu_hours']:,.0f}" if line["gpu_hours"] >= 10 else f"{line['gpu_hours']:.2g}"
    if not line["gpu_hours"]:
        table.add_row(line["name"], tokens, *4 * [MISSING], style=style)
        return
    table.add_row(line["name"], tokens, clock(line["hours"]), hours, money(line["dollars"]), energy, style=style)


def _show_serving(serving: Part, console: Console) -> None:
    dtype, context = DTYPE_NAMES[serving["dtype"]], f"{serving['context']:,}"
    _title(console, f"Serving on {serving['devices']}: ceilings behind {context} tokens")
    drafts = any(batch["mtp_speedup"] for batch in serving["batches"])
    heads = ("sequences", "tokens/s", "each", "$ per M tokens", *(["with drafts"] if drafts else []))
    table = _table(*heads)
    for batch in serving["batches"]:
        cells = [
            count(batch["rows"]),
            count(batch["tokens_per_s"]),
            f"{batch['tokens_per_s_each']:,.0f}",
            dollars(batch["dollars_per_million"]),
        ]
        table.add_row(*cells, *([f"{batch['mtp_speedup']:.2f} times"] if drafts else []))
    console.print(table)
    weights = f"{dtype} weights take {si(serving['weight_bytes'], 'B')}"
    reading = f"prompts are read at {count(serving['prefill_tokens_per_s'])} tokens/s at most"
    accepted = f" Drafts: one each step, {percent(serving['acceptance'])} accepted." if drafts else ""
    sentence = (
        f"{weights}; {count(serving['sequences'])} sequences fit; {reading}. No engine reaches a ceiling: "
        f"count on half, at twice the price.{accepted}"
    )
    _say(console, f"[dim]{sentence}[/dim]")


def _show_published(figures: list[Part], console: Console) -> None:
    _title(console, "Beside the published figures")
    table = _table("", "computed", "printed", "")
    for figure in figures:
        table.add_row(figure["name"], figure["computed"], figure["printed"] or MISSING, _dim(figure["source"]))
    console.print(table)


# ---- numbers and shapes ---------------------------------------------------------------------------------------------


def si(amount: float, unit: str) -> str:
    """An amount to four digits with the prefix of its unit: 250.5 GFLOP."""
    for prefix in ("", "k", "M", "G", "T", "P"):
        if amount < 999.95 or prefix == "P":
            return f"{amount:.4g} {prefix}{unit}"
        amount /= 1000
    raise AssertionError


def plain(number: float) -> str:
    """Whole from a thousand up, else four digits."""
    return f"{number:,.0f}" if number >= 1000 else f"{number:.4g}"


def money(amount: float) -> str:
    """Dollars, whole from a thousand up."""
    return dollars(amount) if amount < 1000 else f"${count(amount)}"


def clock(hours: float) -> str:
    """Time by the clock, in days where there are many."""
    return f"{hours / 24:,.1f} days" if hours >= 48 else duration(3600 * hours)


def _bar(share: float, columns: int) -> str:
    whole, eighths = divmod(max(round(8 * columns * share), 1), 8)
    return "█" * whole + EIGHTHS[eighths].strip()


def _table(*heads: str) -> Table:
    """Names, then amounts to the right; a column without a head takes notes, to the left."""
    table = Table(box=None, padding=(0, 0, 0, INDENT), header_style="dim")
    for at, head in enumerate(heads):
        table.add_column(head, justify="right" if at and head else "left", no_wrap=bool(head) or at == 0)
    return table


def _title(console: Console, title: str) -> None:
    console.print(f"\n[bold]{title}[/bold]", highlight=False)


def _say(console: Console, sentence: str) -> None:
    console.print(Padding(Text.from_markup(sentence), (0, 0, 0, INDENT)), highlight=False)


def _dim(text: str) -> Text:
    return Text(text, style="dim")
