"""expo_ray: extrapolate aligned language models on Ray and choose alpha by evidence.

The commands of `expo-ray` as functions, with the same arguments; each is imported on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from expo_ray.evaluation import alpaca_eval_metrics, alpaca_eval_outputs
    from expo_ray.extrapolation import diagnose, doctor, extrapolate, inspect_checkpoint, verify
    from expo_ray.loadtests import loadtest
    from expo_ray.reports import write_report
    from expo_ray.serving import generate, score, serve, set_alpha
    from expo_ray.workflow.run import run, select

__version__ = "0.1.0"

_HOMES = {
    "alpaca_eval_metrics": "expo_ray.evaluation",
    "alpaca_eval_outputs": "expo_ray.evaluation",
    "diagnose": "expo_ray.extrapolation",
    "doctor": "expo_ray.extrapolation",
    "extrapolate": "expo_ray.extrapolation",
    "generate": "expo_ray.serving",
    "inspect_checkpoint": "expo_ray.extrapolation",
    "loadtest": "expo_ray.loadtests",
    "run": "expo_ray.workflow.run",
    "score": "expo_ray.serving",
    "select": "expo_ray.workflow.run",
    "serve": "expo_ray.serving",
    "set_alpha": "expo_ray.serving",
    "verify": "expo_ray.extrapolation",
    "write_report": "expo_ray.reports",
}

__all__ = [
    "alpaca_eval_metrics",
    "alpaca_eval_outputs",
    "diagnose",
    "doctor",
    "extrapolate",
    "generate",
    "inspect_checkpoint",
    "loadtest",
    "run",
    "score",
    "select",
    "serve",
    "set_alpha",
    "verify",
    "write_report",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'expo_ray' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)
