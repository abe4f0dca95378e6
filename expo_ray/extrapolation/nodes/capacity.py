"""Whether some node can hold the most demanding task: Ray would wait for one without end."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from expo_ray.errors import ConfigError, argument
from expo_ray.extrapolation.shards.tasks import TASK_MEMORY_BYTES, ShardTask

# Beside its buffers a worker holds the imports of torch and Ray.
WORKER_MEMORY_BYTES = TASK_MEMORY_BYTES + 512 * 1024 * 1024

_MEMINFO = Path("/proc/meminfo")
_LIMIT, _USED = (Path(f"/sys/fs/cgroup/memory.{name}") for name in ("max", "current"))

logger = logging.getLogger(__name__)


def refuse_too_big_for_nodes(
    tasks: Sequence[ShardTask], nodes: Sequence[Mapping[str, Any]], *, may_grow: bool
) -> None:
    """Let a run pass whose tasks a cluster can take; one that may still grow is given the time.

    Args:
        tasks: The work.
        nodes: As Ray describes those that have CPUs.
        may_grow: Whether an autoscaler may add other nodes.

    Raises:
        ConfigError: No node can take the most demanding task.
    """
    if not tasks:
        return
    largest = max(tasks, key=lambda task: task.extra_memory_bytes)
    needed = WORKER_MEMORY_BYTES + largest.extra_memory_bytes
    offered = max((int(node["Resources"].get("memory", 0)) for node in nodes), default=0)
    if nodes and offered >= needed:
        return
    if may_grow:
        logger.warning(
            "no node has a CPU and %d bytes of memory yet: the autoscaler is waited for", needed
        )
        return
    if not nodes:
        raise ConfigError(
            "no node of the cluster has a CPU",
            where=argument("address"),
            got="0 CPUs",
            expected="at least one node with one CPU",
            hint=f"start nodes with `ray start --num-cpus`, or use {argument('address', 'local')}",
        )
    raise _too_big(largest, offered, needed, "the largest node offers", "`ray start --memory`")


def refuse_too_big_for_here(tasks: Sequence[ShardTask]) -> None:
    """Let a run in this process pass; buffers shrink where memory is short, what is said here not.

    Raises:
        ConfigError: A transform takes more memory than this machine has left.
    """
    largest = max(tasks, key=lambda task: task.extra_memory_bytes, default=None)
    available = available_bytes()
    if largest is None or available is None or not largest.extra_memory_bytes:
        return
    needed = TASK_MEMORY_BYTES + largest.extra_memory_bytes
    if needed > available:
        raise _too_big(largest, available, needed, "this machine has", "a larger machine")


def available_bytes() -> int | None:
    """Return the memory that this machine, or the group this process runs in, has left."""
    try:
        lines = dict(line.split(":") for line in _MEMINFO.read_text().splitlines())
        available = int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None
    try:
        return min(available, int(_LIMIT.read_text()) - int(_USED.read_text()))
    except (OSError, ValueError):  # no such group, or "max"
        return available


def _too_big(task: ShardTask, got: int, needed: int, who: str, more: str) -> ConfigError:
    return ConfigError(
        "a task needs more memory than there is",
        where=task.shard.name,
        got=f"{who} {got} bytes",
        expected=f"at least {needed} bytes",
        hint=f"give more memory ({more}), leave the transform out, or write fewer alphas at a time",
    )
