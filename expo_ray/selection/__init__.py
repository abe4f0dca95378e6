"""Choosing alpha by evidence.

`choose_alpha` reads finished tables and needs no Ray; a whole sweep is the workflow's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from expo_ray.selection.choice import choose_alpha
    from expo_ray.selection.settings import SelectionSettings

__all__ = ["SelectionSettings", "choose_alpha"]

_MODULES = {"SelectionSettings": "settings", "choose_alpha": "choice"}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
