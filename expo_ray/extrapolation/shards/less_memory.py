"""What becomes of a task whose worker ran out of memory: the same work in smaller pieces."""

from __future__ import annotations

import logging
from dataclasses import replace

from expo_ray.errors import ShardError
from expo_ray.extrapolation.shards.tasks import MIN_CHUNK_BYTES, ShardTask

logger = logging.getLogger(__name__)


def with_less_memory(task: ShardTask, what: str) -> ShardTask:
    """Return a task with a quarter of the buffers and one thread, for the next attempt.

    Args:
        task: The task that ran out of memory.
        what: What happened, in words.

    Raises:
        ShardError: Its chunks are the smallest already.
    """
    if task.chunk_bytes <= MIN_CHUNK_BYTES:
        raise ShardError(
            "there is not enough memory, even for the smallest chunks",
            where=task.shard.name,
            got=what,
            hint="give the workers more memory, or write fewer alphas at a time; the same command "
            "continues",
        )
    smaller = max(MIN_CHUNK_BYTES, task.chunk_bytes // 4)
    logger.warning("out of memory: chunks of %d bytes from here on", smaller)
    return replace(task, chunk_bytes=smaller, num_threads=1)
