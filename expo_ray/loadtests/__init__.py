"""Load tests of any OpenAI-compatible service, and what their numbers mean.

`metrics` and `compare` are arithmetic on recorded timestamps; the clients that send requests are
Ray actors and are imported on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from expo_ray.loadtests.compare import compare_folders, compare_summaries
    from expo_ray.loadtests.contest import Contender, compare_targets
    from expo_ray.loadtests.options import LoadtestOptions
    from expo_ray.loadtests.run import loadtest
    from expo_ray.loadtests.scaling import loadtest_scaling

__all__ = [
    "Contender",
    "LoadtestOptions",
    "compare_folders",
    "compare_summaries",
    "compare_targets",
    "loadtest",
    "loadtest_scaling",
]

_MODULES = {
    "Contender": "contest",
    "LoadtestOptions": "options",
    "compare_folders": "compare",
    "compare_summaries": "compare",
    "compare_targets": "contest",
    "loadtest": "run",
    "loadtest_scaling": "scaling",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
