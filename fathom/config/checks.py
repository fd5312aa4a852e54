"""Checks that every config runs where it is born; each failure is one sentence with the remedy."""

from collections.abc import Sequence


def require_positive(section: str, **fields: float) -> None:
    """Raise ValueError for the first field that is not above zero."""
    for name, value in fields.items():
        if not value > 0:
            raise ValueError(f"{section}.{name}={value} is not above zero; give a positive number")


def require_unit_interval(section: str, **fields: float) -> None:
    """Raise ValueError for the first field outside [0, 1]."""
    for name, value in fields.items():
        if not 0.0 <= value <= 1.0:
            raise ValueError(f"{section}.{name}={value} lies outside [0, 1]; give a share")


def require_choice(section: str, field: str, value: str, allowed: Sequence[str]) -> None:
    """Raise ValueError unless `value` is one of `allowed`."""
    if value not in allowed:
        raise ValueError(f"{section}.{field}={value!r} is unknown; choose one of {', '.join(allowed)}")
