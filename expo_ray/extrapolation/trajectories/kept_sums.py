"""Sums over a path that are measured already, kept until what they are for is written.

One file per task, named by the versions of all checkpoints and by the task's tensors: what was
measured of other weights, or in other parts, is never found. A file that was damaged is measured
again.
"""

from __future__ import annotations

import io
import json
import zipfile
from typing import Any

import numpy as np

from expo_ray.checkpoints.digests import digest_of
from expo_ray.checkpoints.storages.atomic_io import atomic_write_bytes
from expo_ray.checkpoints.storages.remote_path import AnyPath
from expo_ray.extrapolation.arithmetic.path_sums import PathSums
from expo_ray.extrapolation.outputs.work_folder import MEASURED_FOLDER, remove_tree
from expo_ray.extrapolation.shards.tasks import ShardTask
from expo_ray.extrapolation.trajectories.diagnosis_file import identity_of
from expo_ray.extrapolation.trajectories.trajectory import Trajectory

# Raise it with every change of what is summed.
_VERSION = 1
_FIELDS = ("num_elements", "gram", "rounding", "num_moved")


class KeptSums:
    """The sums of finished tasks, in a folder of its own.

    Args:
        folder: What belongs to the unfinished result; it may lie in a bucket.
        trajectory: The checkpoints that are measured.
    """

    def __init__(self, folder: AnyPath, trajectory: Trajectory) -> None:
        self._folder = folder / MEASURED_FOLDER
        versions = [identity_of(checkpoint) for checkpoint in trajectory.checkpoints]
        self._key = json.dumps([_VERSION, versions])
        self.found_bytes = 0
        """Of the inputs, what needed not to be read again."""

    def read(self, task: ShardTask) -> dict[str, PathSums] | None:
        """Return the sums of a task by tensor; None where they have to be measured."""
        try:
            with np.load(io.BytesIO(self._place(task).read_bytes())) as arrays:
                fields = [arrays[name] for name in _FIELDS]
            rows = [dict(zip(_FIELDS, row, strict=True)) for row in zip(*fields, strict=True)]
            found = [PathSums.unpacked({**row, "num_elements": int(row["num_elements"])})
                     for row in rows]  # fmt: skip
            sums = dict(zip(_names(task), found, strict=True))
        except (OSError, ValueError, LookupError, EOFError, zipfile.BadZipFile):
            return None
        self.found_bytes += task.shard.input_bytes
        return sums

    def write(self, task: ShardTask, statistics: dict[str, dict[str, Any]]) -> None:
        """Keep the sums of a task, packed, as its report has them."""
        rows = [statistics[name] for name in _names(task)]
        buffer = io.BytesIO()
        arrays = {name: np.array([row[name] for row in rows]) for name in _FIELDS}
        np.savez(buffer, allow_pickle=False, **arrays)
        self._folder.mkdir(parents=True, exist_ok=True)
        atomic_write_bytes(self._place(task), buffer.getvalue())

    def remove(self) -> None:
        """Remove what was kept, of these checkpoints and of others."""
        remove_tree(self._folder)

    def _place(self, task: ShardTask) -> AnyPath:
        text = json.dumps([self._key, *_names(task)])
        return self._folder / f"{digest_of(text.encode()).partition(':')[2]}.npz"


def _names(task: ShardTask) -> list[str]:
    return [pair.name for pair in task.shard.tensors]
