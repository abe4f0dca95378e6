"""Where checkpoints are worked on if nobody says where: in this process, or on a Ray of its own.

To start and end a local Ray takes seconds, which come back only where several workers do what one
process cannot, long enough.
"""

from __future__ import annotations

import logging
import os

logger = logging.getLogger(__name__)

# On two cores a local Ray takes 8 to 10 s longer than this process at 5 and at 18 GiB read, so it
# never wins there. This process reads 1 GiB/s and more: below so many bytes it is done before
# workers, however many, have caught up.
LOCAL_RAY_BYTES = 16 * 2**30
LOCAL_RAY_CORES = 4
# More have nothing to do while the bytes of one output are hashed in order.
_MAX_THREADS = 8


def is_sooner_here(num_bytes: int) -> bool:
    """Tell whether this process is done with so much input before a local Ray would be."""
    if num_bytes >= LOCAL_RAY_BYTES and num_cores() >= LOCAL_RAY_CORES:
        return False
    logger.info(
        "%.1f GiB are read in this process on %d cores, which is done before a local Ray would be; "
        "local or the address of a cluster asks for Ray",
        num_bytes / 2**30,
        num_cores(),
    )
    return True


def num_threads_here(num_threads: int) -> int:
    """Return how many threads compute in this process; at least as many as a task has anyway."""
    return max(num_threads, min(num_cores(), _MAX_THREADS))


def num_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
