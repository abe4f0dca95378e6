"""Batches of shards that one worker does in a row, and what becomes of a batch that was lost."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from expo_ray.checkpoints.storages.hub_storage import SCHEME as HUB_SCHEME
from expo_ray.extrapolation.shards.less_memory import with_less_memory
from expo_ray.extrapolation.shards.tasks import ShardTask

# A worker needs seconds to import torch: less work than this is not worth one of its own.
MIN_BATCH_BYTES = 128 * 1024 * 1024
# The Hub limits the requests of a user: all tasks together have at most so many open.
MAX_HUB_REQUESTS = 64
MAX_RETRIES = 3
MEMORY_DELAY_SECONDS = 2.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Batch:
    """Tasks that one Ray task does, and what became of earlier attempts at them."""

    indices: tuple[int, ...]
    tasks: tuple[ShardTask, ...]
    num_lost: int = 0
    num_out_of_memory: int = 0
    not_before: float = 0.0

    def lost(self) -> Batch | None:
        """Return the batch for an attempt on another worker; None where it was lost too often."""
        if self.num_lost >= MAX_RETRIES:
            return None
        logger.warning("a worker was lost, its %d shards start again", len(self.tasks))
        return replace(self, num_lost=self.num_lost + 1)

    def out_of_memory(self) -> Batch:
        """Return the batch for an attempt that takes less memory, some seconds from now.

        Raises:
            ShardError: Its memory cannot be made smaller.
        """
        what = "Ray killed the worker because its node was short of memory"
        return replace(
            self,
            tasks=tuple(with_less_memory(task, what) for task in self.tasks),
            num_out_of_memory=self.num_out_of_memory + 1,
            not_before=time.monotonic() + MEMORY_DELAY_SECONDS * 2**self.num_out_of_memory,
        )


def batch_tasks(tasks: Sequence[ShardTask]) -> list[tuple[int, ...]]:
    """Group the indices of tasks that one Ray task does one after the other."""
    batches: list[list[int]] = []
    filled = MIN_BATCH_BYTES
    for index, task in enumerate(tasks):
        if filled >= MIN_BATCH_BYTES:
            batches.append([])
            filled = 0
        batches[-1].append(index)
        filled += task.shard.input_bytes
    return [tuple(batch) for batch in batches]


def max_batches(tasks: Sequence[ShardTask]) -> int:
    """Return how many batches may run at a time in the whole cluster."""
    threads = [t.num_threads for t in tasks if HUB_SCHEME in " ".join(t.uris)]
    return max(1, MAX_HUB_REQUESTS // max(threads)) if threads else max(1, len(tasks))
