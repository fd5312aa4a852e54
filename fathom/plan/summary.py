"""All that is known of a run before it begins, as one dict: for the terminal, for `--json` and for the page."""

from dataclasses import asdict, replace
from typing import Any

from fathom.config import Config, ModelConfig
from fathom.config.published import Dtype
from fathom.plan.cache import cache_alternatives, cache_bytes, cache_elements
from fathom.plan.cost import EXCLUDED, V3_TOKENS, affordable_tokens, cost_lines, is_v3, total, train_tokens
from fathom.plan.count import (
    checkpoint_bytes,
    checkpoint_elements,
    decode_flops_per_token,
    main_parameters,
    mtp_parameters,
    parts,
    prefill_flops_per_token,
    train_flops_per_token,
)
from fathom.plan.hardware import Devices
from fathom.plan.layout import Layout
from fathom.plan.memory import capacity, fix
from fathom.plan.prediction import prediction
from fathom.plan.published import published_figures
from fathom.plan.question import Question, parse_times, parse_tokens
from fathom.plan.schedule import bubble, simulate, stages_of
from fathom.plan.search import Found, command, is_trainable
from fathom.plan.serving import Server, serving_dtype
from fathom.plan.spread import NODE, Spread, choose_devices, price_of, spread_over

Plan = dict[str, Any]

SHOWN = 10  # layouts
CONTEXT = 4096  # tokens of a sequence that is served, where the model takes as many
DTYPES: dict[str, Dtype] = {"FP8": "fp8", "BF16": "bfloat16", "FP32": "float32"}
BATCHES = (1, 8, 32, 128, 512, 2048)  # sequences that are served together


def make_plan(config: Config, question: Question) -> Plan:
    """Everything that is known of a run before it begins."""
    rows, seq_len = question.rows or config.pretrain.batch_rows, question.seq_len or config.pretrain.seq_len
    config = replace(config, pretrain=replace(config.pretrain, batch_rows=rows, seq_len=seq_len))
    devices = choose_devices(config, question)
    if question.schedule:
        return {"schedule": _pipeline(question)}
    context, spread = _context(config.model, question), spread_over(config, question, devices)
    tokens = _tokens(config, question, devices, spread.mfu)
    return {
        "model": _model(config),
        "flops": _flops(config.model, seq_len, context),
        "cache": _cache(config.model),
        "checkpoint": _checkpoint(config.model),
        "serving": _serving(config.model, devices, context, question.acceptance),
        "published": [asdict(figure) for figure in published_figures(config.model)],
        **_layout(config, devices, spread, tokens),
        "cost": _cost(config, question, devices, spread, tokens),
    }


# ---- the model ------------------------------------------------------------------------------------------------------


def _model(config: Config) -> Plan:
    model = config.model
    return {
        "name": config.preset,
        "total": main_parameters(model),
        "active": main_parameters(model, active=True),
        "active_without_embedding": main_parameters(model, active=True, embedding=False),
        "mtp": mtp_parameters(model),
        "parts": parts(model),
        "active_parts": parts(model, active=True),
    }


def _flops(model: ModelConfig, seq_len: int, context: int) -> Plan:
    return {
        "seq_len": seq_len,
        "training": train_flops_per_token(model, seq_len, mtp=False),
        "training_with_mtp": train_flops_per_token(model, seq_len),
        "training_non_causal": train_flops_per_token(model, seq_len, mtp=False, causal=False),
        "prefill": prefill_flops_per_token(model, seq_len),
        "context": context,
        "decode": decode_flops_per_token(model, context),
    }


def _cache(model: ModelConfig) -> Plan:
    return {
        "kind": model.attention.kind,
        "elements": cache_elements(model),
        "bytes": {"BF16": cache_bytes(model), "FP8": cache_bytes(model, "fp8"), "6 bits": cache_bytes(model, "6bit")},
        "alternatives": {name: 2 * elements for name, elements in cache_alternatives(model).items()},
    }


def _checkpoint(model: ModelConfig) -> Plan:
    return {
        "elements": checkpoint_elements(model),
        "bytes": {name: checkpoint_bytes(model, dtype) for name, dtype in DTYPES.items()},
    }


# ---- how a step is spread -------------------------------------------------------------------------------------------


def _layout(config: Config, devices: Devices, spread: Spread, tokens: float) -> Plan:
    """The best layout with its memory, the ten best, and the command for the best that Fathom trains."""
    if not spread.found:
        return {"memory": {"fits": False, "fix": spread.problem}}
    best, room = spread.found[0], capacity(devices.hardware.memory_bytes)
    remedy = fix(config.model, best.layout, config.pretrain.seq_len, devices.hardware.memory_bytes)
    runnable = next((found for found in spread.found if _runs(found, room)), None)
    shown = spread.found[:SHOWN]
    own: Plan = {"command": "", "prediction": {}}
    if runnable:
        shown += [] if runnable in shown else [runnable]
        own = {
            "command": _command(config, runnable.layout, devices, tokens),
            "prediction": prediction(runnable.layout, devices, runnable.memory, runnable.throughput, tokens),
        }
    return {
        "layout": asdict(best.layout),
        "memory": {
            "parts": best.memory.parts,
            "total": best.memory.total,
            "device_bytes": room,
            "fits": best.memory.total <= room,
            "fix": remedy.change if remedy else "",
        },
        "layouts": [_row(devices, found, tokens, _runs(found, room)) for found in shown],
        **own,
    }


def _runs(found: Found, room: float) -> bool:
    """Whether `fathom pretrain` can do it: it knows how, and the devices hold it."""
    return is_trainable(found.layout) and found.memory.total <= room


def _command(config: Config, layout: Layout, devices: Devices, tokens: float) -> str:
    """What trains on so many tokens, and books what these devices cost."""
    train, price = config.pretrain, devices.count * devices.hardware.dollars_per_hour
    words = f"{command(config, layout, train.batch_rows, train.seq_len)} --dollars_per_hour {price:g}"
    steps = max(1, round(tokens / train_tokens(replace(train, steps=1))))
    return words if tokens == train_tokens(train) else f"{words} --pretrain.steps {steps}"


def _row(devices: Devices, found: Found, tokens: float, runs: bool) -> Plan:
    hours, plain = found.hours(tokens), asdict(Layout())
    return {
        "layout": {name: value for name, value in asdict(found.layout).items() if value != plain[name]},
        "tokens_per_s": found.throughput.tokens_per_s,
        "mfu": found.throughput.mfu,
        "bubble_share": found.throughput.bubble,
        "peak_memory_bytes": found.memory.total,
        "hours": hours,
        "dollars": hours * devices.count * devices.hardware.dollars_per_hour,
        "runs_in_fathom": runs,
    }


# ---- what it costs, and what it serves ------------------------------------------------------------------------------


def _tokens(config: Config, question: Question, devices: Devices, mfu: float) -> float:
    """Tokens of pretraining: the config's, those asked for, or what the time or the money is enough for."""
    hours = question.hours * devices.count
    if question.budget:
        hours = question.budget / devices.hardware.dollars_per_hour
    if hours:
        flops = train_flops_per_token(config.model, config.pretrain.seq_len)
        return affordable_tokens(hours, flops, devices.hardware, mfu)
    return parse_tokens(question.tokens) if question.tokens else train_tokens(config.pretrain)


def _cost(config: Config, question: Question, devices: Devices, spread: Spread, tokens: float) -> Plan:
    hardware, mfu = devices.hardware, spread.mfu
    flops = train_flops_per_token(config.model, config.pretrain.seq_len)
    without = train_flops_per_token(config.model, config.pretrain.seq_len, mtp=False)
    lines = cost_lines(config, devices, mfu, tokens)
    if not is_v3(config.model) and tokens == V3_TOKENS == train_tokens(config.pretrain):
        lines[0] = replace(lines[0], note="as many tokens as V3, whose training stands in; --tokens sets others")
    if question.hours or question.budget:  # the money or the time is spent on pretraining alone
        lines = lines[:1] + [replace(line, included=False) for line in lines[1:]]
    return {
        "devices": str(devices),
        "dollars_per_hour": hardware.dollars_per_hour,
        "price_source": price_of(config, question, devices)[1],
        "hardware_sources": hardware.sources,
        "mfu": mfu,
        "mfu_source": spread.mfu_source,
        "mfu_without_mtp": mfu * without / flops if is_v3(config.model) else None,
        "tokens_per_s": devices.count * hardware.peak_flops * mfu / flops,
        "tokens_per_active_parameter": tokens / main_parameters(config.model, active=True, embedding=False),
        "lines": [asdict(line) for line in lines],
        "total": asdict(total(lines)),
        "excluded": EXCLUDED,
    }


def _pipeline(question: Question) -> Plan:
    """The pipeline that was asked for, played out, and the idle time of others with as many stages (V3 Table 2)."""
    times, ranks = parse_times(question.times), question.ranks
    timeline = simulate(question.schedule, ranks, question.micro_batches, times)
    stages = stages_of(question.schedule, ranks)
    devices = {"1f1b": stages, "zb1p": stages, "dualpipe": stages, "dualpipev": stages // 2}
    return {
        "schedule": question.schedule,
        "ranks": ranks,
        "micro_batches": question.micro_batches,
        "times": asdict(times),
        "makespan": timeline.makespan,
        "bubble": max(timeline.bubble),
        "bubbles": [
            {"schedule": name, "devices": count, "bubble": bubble(name, count, times)}
            for name, count in devices.items()
            if name[:4] != "dual" or stages % 2 == 0
        ],
        "cells": [asdict(cell) for cell in timeline.cells],
    }


def _context(model: ModelConfig, question: Question) -> int:
    """Tokens of a sequence that is served."""
    longest = model.max_position_embeddings
    if question.context > longest:
        raise ValueError(
            f"--context {question.context} is longer than the model's {longest} tokens; give at most those"
        )
    return question.context or min(CONTEXT, longest)


def _serving(model: ModelConfig, devices: Devices, context: int, acceptance: float) -> Plan:
    """Ceilings on a node's devices, or on the fewest that hold the model."""
    dtype = serving_dtype(devices.hardware)
    server = Server(model=model, devices=replace(devices, count=min(devices.count, NODE)), dtype=dtype)
    while not (fitting := server.sequences(context)):
        server = replace(server, devices=replace(server.devices, count=2 * server.devices.count))
    return {
        "devices": str(server.devices),
        "dtype": dtype,
        "context": context,
        "weight_bytes": server.weight_bytes,
        "sequences": fitting,
        "acceptance": acceptance,
        "prefill_tokens_per_s": server.prefill_tokens_per_s(context),
        "batches": [
            {
                "rows": rows,
                "tokens_per_s": server.tokens_per_s(rows, context),
                "tokens_per_s_each": server.tokens_per_s(rows, context) / rows,
                "dollars_per_million": server.dollars_per_million(server.tokens_per_s(rows, context)),
                "mtp_speedup": server.mtp_speedup(rows, context, acceptance)
                if model.num_nextn_predict_layers
                else None,
            }
            for rows in sorted({*(size for size in BATCHES if size < fitting), min(fitting, 4 * BATCHES[-1])})
        ],
    }
