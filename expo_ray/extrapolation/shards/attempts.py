"""Attempts at one shard: again after passing I/O errors, in smaller chunks when memory is short.

An error of our own (wrong input, overflow, full disk) is never tried again.
"""

from __future__ import annotations

from collections.abc import Callable

from expo_ray.checkpoints.storages.retries import retry_io
from expo_ray.extrapolation.shards.engine import run_shard
from expo_ray.extrapolation.shards.less_memory import with_less_memory
from expo_ray.extrapolation.shards.path_pass import measure_paths
from expo_ray.extrapolation.shards.tasks import MEASURE_PATHS, ShardReport, ShardTask

IO_ATTEMPTS = 3
# What torch and the interpreter say instead of raising MemoryError.
_NO_MEMORY = (
    "can't allocate memory",
    "not enough memory",
    "out of memory",
    "can't start new thread",
)


def attempt_shard(task: ShardTask, on_total: Callable[[int], None]) -> ShardReport:
    """Run one shard until it is done, or until trying again is pointless.

    Args:
        task: The work; every attempt starts at the beginning of the shard.
        on_total: Called with the input bytes that the attempt has done so far.

    Returns:
        The report of the attempt that worked.

    Raises:
        ShardError: The work failed, or the memory does not suffice even for small chunks.
        OSError: A read or write failed every time.
    """
    while True:
        try:
            # A name bound by default argument: each attempt keeps its own task.
            return retry_io(
                lambda task=task: _run(task, on_total),  # type: ignore[misc]
                what=f"write {task.shard.name}",
                attempts=IO_ATTEMPTS,
            )
        except (MemoryError, RuntimeError) as error:
            if not _is_memory(error):
                raise
            what = str(error).splitlines()[0] if str(error) else type(error).__name__
            task = with_less_memory(task, what)


def _run(task: ShardTask, on_total: Callable[[int], None]) -> ShardReport:
    total = 0

    def on_bytes(num_bytes: int) -> None:
        nonlocal total
        total += num_bytes
        on_total(total)

    run = measure_paths if task.mode == MEASURE_PATHS else run_shard
    return run(task, on_bytes)


def _is_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or any(word in str(error) for word in _NO_MEMORY)
