"""Where checkpoints are worked on if nobody says where: in this process, or on a Ray of its own.

To start and end a local Ray takes seconds, which come back only where several workers do what one
process cannot, long enough.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from expo_ray.checkpoints.storages.hub_storage import SCHEME as HUB_SCHEME
from expo_ray.checkpoints.storages.remote_path import is_remote
from expo_ray.cores import num_cores
from expo_ray.extrapolation.shards.tasks import ShardTask

logger = logging.getLogger(__name__)

# On two cores a local Ray took 2.5 s longer than this process for 7 GiB read and written, and 3 s
# for 18 GiB (benchmarks/results/extrapolation.md); with more cores, of which there was no machine,
# its workers can win that back only where there is more to do.
LOCAL_RAY_BYTES = 24 * 2**30
LOCAL_RAY_CORES = 4
# More have nothing to do while the bytes of one output are hashed in order.
_MAX_THREADS = 8


def is_sooner_here(tasks: Sequence[ShardTask]) -> bool:
    """Tell whether this process is done with some tasks before a local Ray would be.

    Transforms compute much longer than they read, a tensor at a time, and a network waits: workers
    do several of these at once, this process does not.
    """
    num_bytes = sum(_moved_bytes(task) for task in tasks)
    is_large = num_bytes >= LOCAL_RAY_BYTES and num_cores() >= LOCAL_RAY_CORES
    is_slow = any(task.transforms or any(map(_is_far, task.uris)) for task in tasks)
    is_here = not is_large and not is_slow
    logger.info(
        "%.1f GiB are read and written %s; an address asks for another place",
        num_bytes / 2**30,
        f"in this process, on {num_cores()} cores" if is_here else "by a local Ray",
    )
    return is_here


def _moved_bytes(task: ShardTask) -> int:
    return task.shard.input_bytes + len(task.outputs) * task.shard.data_bytes


def _is_far(uri: str) -> bool:
    return is_remote(uri) or uri.startswith(HUB_SCHEME)


def num_threads_here(num_threads: int) -> int:
    """Return how many threads compute in this process; at least as many as a task has anyway."""
    return max(num_threads, min(num_cores(), _MAX_THREADS))
