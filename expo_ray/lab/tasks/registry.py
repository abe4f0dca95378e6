"""The tasks that there are. A new one is a file beside this one and a line below."""

from __future__ import annotations

from expo_ray.lab.tasks.interface import LabTask
from expo_ray.lab.tasks.list_writers import LISTS
from expo_ray.lab.tasks.sums import SUMS

TASKS: dict[str, LabTask] = {task.name: task for task in (LISTS, SUMS)}
