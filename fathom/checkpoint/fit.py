"""Whether a checkpoint's tensors are those that its config asks for, told before any of them is read."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from fathom.checkpoint.tensors import Shape

SHOWN = 3  # names spelled out before the rest is counted


def require_fit(
    source: Path, found: Mapping[str, Shape], wanted: Mapping[str, Shape], copies: Mapping[str, str]
) -> None:
    """Raise ValueError, with names and both shapes, unless `found` holds all of `wanted` and else only copies."""
    expected = {**wanted, **{copy: wanted[original] for copy, original in copies.items()}}
    wrong = [
        f"{name} has shape {shape} where the config asks for {expected[name]}"
        for name, shape in found.items()
        if name in expected and shape != expected[name]
    ]
    complaints = {
        "": wrong,
        "missing: ": [name for name in wanted if name not in found],
        "unexpected: ": [name for name in found if name not in expected],
    }
    told = "; ".join(kind + _shorten(names) for kind, names in complaints.items() if names)
    if told:
        raise ValueError(
            f"{source} does not fit its config: {told}. Give the config.json that belongs to these weights"
        )


def _shorten(names: Sequence[str]) -> str:
    rest = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {rest} more" if rest > 0 else "")
