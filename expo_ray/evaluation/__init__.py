"""Published benchmarks: writing what their judges read, and reading what they decided."""

from __future__ import annotations

from typing import TYPE_CHECKING

from expo_ray.lazy import lazy_exports

if TYPE_CHECKING:
    from expo_ray.evaluation.alpaca_eval import alpaca_eval_metrics
    from expo_ray.evaluation.alpaca_outputs import alpaca_eval_outputs

__all__ = ["alpaca_eval_metrics", "alpaca_eval_outputs"]

__getattr__ = lazy_exports(
    __name__,
    {"alpaca_eval_metrics": "alpaca_eval", "alpaca_eval_outputs": "alpaca_outputs"},
)
