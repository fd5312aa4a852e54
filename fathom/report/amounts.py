"""Named amounts as people read them: the name says the unit, as `peak_bytes` or `rollout_hours` do."""

import math
from typing import Any

from fathom.report import units
from fathom.report.units import MISSING, SPACE

NAMES = {  # what a key alone would spell badly
    "weight_bytes": "Weights",
    "published": "Published figures",
    "fathom": "Fathom",
    "mtp": "MTP",
    "mla": "MLA",
    "mha": "MHA",
    "gqa": "GQA",
    "mqa": "MQA",
    "bf16": "BF16",
    "fp8": "FP8",
    "fp32": "FP32",
    "mfu": "MFU",
    "gpu": "GPU",
    "kv": "KV",
    "flops": "FLOPs",
    "rl": "RL",
    "sft": "SFT",
    "F8_E4M3": "F8_E4M3",
    "zero": "ZeRO",
}
DOLLARS, SHARES = ("dollars", "dollar"), ("share", "mfu", "acceptance")
BYTES = ("bytes", "alternatives")
COUNTS = ("elements", "seq_len", "context", "rows", "sequences", "ranks", "devices")


def words(key: str) -> str:
    """A key in words, as within a sentence."""
    if key in NAMES:
        return NAMES[key]
    found = " ".join(NAMES.get(word, word) for word in key.removesuffix("_bytes").replace("_", " ").split())
    for long, short in (("tokens per s", "tokens/s"), ("micro batch", "micro-batch"), ("non causal", "non-causal")):
        found = found.replace(long, short)
    return found


def name(key: str) -> str:
    """A key in words, as a heading."""
    found = words(key)
    return found[:1].upper() + found[1:]


def amount(key: str, value: Any) -> str:
    """A value in the unit that its key names."""
    match value:
        case None:
            return MISSING
        case bool():
            return "yes" if value else "no"
        case int() | float():
            return _number(key.lower(), value)
        case list() | tuple():
            return ", ".join(amount(key, part) for part in value)
        case _:
            return NAMES.get(str(value), str(value))


def price(dollars: float) -> str:
    """Money; whole dollars from a thousand up."""
    return units.dollars(dollars) if dollars < 1000 else f"${dollars:,.0f}"


def days(hours: float) -> str:
    """Hours, as days from two of them up."""
    return units.duration(3600 * hours) if hours < 48 else f"{hours / 24:,.1f}{SPACE}days"


def memory(amount_bytes: float) -> str:
    """Bytes in GiB, or in MiB below one."""
    if amount_bytes < 2**30:
        return f"{amount_bytes / 2**20:,.0f}{SPACE}MiB"
    return f"{amount_bytes / 2**30:,.1f}{SPACE}GiB"


def operations(flops: float) -> str:
    """Floating-point operations to a hundredth of their unit."""
    power = min(max(int(math.log10(flops)) // 3, 0), 6) if flops >= 1 else 0
    return f"{flops / 1000**power:,.2f}{SPACE}{'_kMGTPE'[power].strip('_')}FLOP"


def share(part: float) -> str:
    """A share in percent, which is never 0.0 % of something."""
    return units.percent(part) if part >= 0.0005 or not part else f"< 0.1{SPACE}%"


def _number(key: str, value: float) -> str:
    last = key.split()[-1].split("_")
    if any(word in key for word in COUNTS):
        return f"{value:,.0f}"
    if any(word in last for word in DOLLARS):
        return price(value)
    if "tokens" in last:
        return (
            units.size(value)
            if value >= 1e6 and "per" not in last
            else f"{value:,.0f}"
            if value >= 100
            else f"{value:.3g}"
        )
    if any(word in last for word in SHARES):
        return units.percent(value)
    if "memory" in key:
        return memory(value)
    if any(word in key for word in BYTES):
        return _bytes(value)
    if "flops" in key:
        return operations(value)
    if "kwh" in last:
        return f"{value:,.0f}{SPACE}kWh" if value >= 10 else f"{value:.2g}{SPACE}kWh"
    if "seconds" in last:
        return units.duration(value)
    if "hours" in last:
        return _hours(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _bytes(value: float) -> str:
    """Exact where a person would count them, else as hubs and data sheets do."""
    if value < 1e7:
        return f"{value:,.0f}{SPACE}B"
    return f"{value / 1e6:,.0f}{SPACE}MB" if value < 1e9 else f"{value / 1e9:,.1f}{SPACE}GB"


def _hours(value: float) -> str:
    if 0 < value < 1:
        return units.duration(3600 * value)
    return f"{value:,.0f}{SPACE}h" if value >= 100 else f"{value:.3g}{SPACE}h"
