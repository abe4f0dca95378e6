"""Published benchmarks: writing what their judges read, and reading what they decided."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from expo_ray.evaluation.alpaca_eval import alpaca_eval_metrics
    from expo_ray.evaluation.alpaca_outputs import alpaca_eval_outputs

__all__ = ["alpaca_eval_metrics", "alpaca_eval_outputs"]

_MODULES = {"alpaca_eval_metrics": "alpaca_eval", "alpaca_eval_outputs": "alpaca_outputs"}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
