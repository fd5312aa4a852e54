"""Fathom: train, explain and serve DeepSeek-style reasoning models."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fathom.infer.offline import Completion, Engine

__version__ = "0.1.0"
__all__ = ["Completion", "Engine"]


def __getattr__(name: str) -> Any:
    """`Engine` and `Completion`, imported when first asked for: what plans or reports starts without torch."""
    if name not in __all__:
        raise AttributeError(f"module 'fathom' has no attribute {name!r}")
    from fathom.infer import offline

    return getattr(offline, name)
