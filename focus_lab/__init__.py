"""Experiments and ablations for Focus-DETR, with AP, cost and uncertainty side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from focus_lab.client import Client

__version__ = "0.1.0"
__all__ = ["Client"]


def __getattr__(name: str) -> Any:
    # Loaded when it is asked for: whoever trains needs no HTTP.
    if name == "Client":
        from focus_lab.client import Client

        return Client
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
