"""The experiments there are. A new one is a file beside this one and a line below."""

from __future__ import annotations

from expo_ray.lab.experiments.controlled import CONTROLLED
from expo_ray.lab.experiments.kind import Experiment
from expo_ray.lab.experiments.language import LANGUAGE

EXPERIMENTS: dict[str, Experiment] = {each.name: each for each in (LANGUAGE, *CONTROLLED)}
"""By name, in the order in which `--help` tells of them."""
