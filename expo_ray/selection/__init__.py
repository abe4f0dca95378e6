"""Choosing alpha by evidence.

`choose_alpha` reads finished tables and needs no Ray; a whole sweep is the workflow's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from expo_ray.lazy import lazy_exports

if TYPE_CHECKING:
    from expo_ray.selection.choice import choose_alpha
    from expo_ray.selection.settings import SelectionSettings

__all__ = ["SelectionSettings", "choose_alpha"]

__getattr__ = lazy_exports(
    __name__,
    {"SelectionSettings": "settings", "choose_alpha": "choice"},
)
