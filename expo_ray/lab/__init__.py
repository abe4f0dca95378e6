"""Laboratories, in which the truth of an answer is known, and the models trained there.

The tiny one has a made-up task; the other is a real language model. Training needs the extra `lab`
or `language`; settings and truth do not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from expo_ray.lazy import lazy_exports

if TYPE_CHECKING:
    from expo_ray.lab.language.prepare import prepare_language
    from expo_ray.lab.language.result import LanguageResult, find_language
    from expo_ray.lab.language.settings import LanguageSettings
    from expo_ray.lab.prepare import prepare_lab
    from expo_ray.lab.result import LabResult, find_lab
    from expo_ray.lab.settings import LabSettings
    from expo_ray.lab.tasks.lists import truth_reward
    from expo_ray.lab.truth_table import write_truth

__all__ = [
    "LabResult",
    "LabSettings",
    "LanguageResult",
    "LanguageSettings",
    "find_lab",
    "find_language",
    "prepare_lab",
    "prepare_language",
    "truth_reward",
    "write_truth",
]

__getattr__ = lazy_exports(
    __name__,
    {
        "LabResult": "result",
        "LabSettings": "settings",
        "LanguageResult": "language.result",
        "LanguageSettings": "language.settings",
        "find_lab": "result",
        "find_language": "language.result",
        "prepare_lab": "prepare",
        "prepare_language": "language.prepare",
        "truth_reward": "tasks.lists",
        "write_truth": "truth_table",
    },
)
