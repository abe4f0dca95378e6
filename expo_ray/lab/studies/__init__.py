"""Controlled experiments with pairs of models: truth against alpha for every setting and seed.

One mechanism (`running.py`), and one record for each experiment (`records.py`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from expo_ray.lazy import lazy_exports

if TYPE_CHECKING:
    from expo_ray.lab.studies.records import STUDIES
    from expo_ray.lab.studies.running import run_study

__all__ = ["STUDIES", "run_study"]

__getattr__ = lazy_exports(__name__, {"STUDIES": "records", "run_study": "running"})
