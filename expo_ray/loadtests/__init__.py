"""Load tests of any OpenAI-compatible service, and what their numbers mean.

`metrics` and `compare` are arithmetic on recorded timestamps; the clients that send requests are
Ray actors and are imported on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from expo_ray.lazy import lazy_exports

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

__getattr__ = lazy_exports(
    __name__,
    {
        "Contender": "contest",
        "LoadtestOptions": "options",
        "compare_folders": "compare",
        "compare_summaries": "compare",
        "compare_targets": "contest",
        "loadtest": "run",
        "loadtest_scaling": "scaling",
    },
)
