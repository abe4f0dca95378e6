"""Choosing alpha by evidence.

`choose_alpha` and its settings read finished tables and need no Ray; what orchestrates a sweep
lives beside them and is imported on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from expo_ray.selection.choice import choose_alpha
    from expo_ray.selection.settings import SelectionSettings
    from expo_ray.selection.sweep import select

__all__ = ["SelectionSettings", "choose_alpha", "select"]

_MODULES = {"SelectionSettings": "settings", "choose_alpha": "choice", "select": "sweep"}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
