"""The tiny laboratory: a task with a hidden truth, and the models trained on it.

Training needs the extra `lab`; settings and truth do not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from expo_ray.lazy import lazy_exports

if TYPE_CHECKING:
    from expo_ray.lab.prepare import prepare_lab
    from expo_ray.lab.result import LabResult, find_lab
    from expo_ray.lab.settings import LabSettings
    from expo_ray.lab.tasks.lists import truth_reward
    from expo_ray.lab.truth_table import write_truth

__all__ = [
    "LabResult",
    "LabSettings",
    "find_lab",
    "prepare_lab",
    "truth_reward",
    "write_truth",
]

__getattr__ = lazy_exports(
    __name__,
    {
        "LabResult": "result",
        "LabSettings": "settings",
        "find_lab": "result",
        "prepare_lab": "prepare",
        "truth_reward": "tasks.lists",
        "write_truth": "truth_table",
    },
)
