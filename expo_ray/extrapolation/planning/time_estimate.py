"""How long the tasks of a plan take on a cluster: the schedule simulated, and its lower bound.

Ray hands tasks out as the fan-out submits them, the biggest first, to whoever is free: this is
list scheduling. A node is modelled by the bytes that it reads and writes per second.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping, Sequence
from typing import Any


def simulate(
    sizes: Sequence[float],
    speeds: Sequence[float],
    *,
    lost_at: Mapping[int, float] | None = None,
) -> float:
    """Return when the last task ends.

    Args:
        sizes: Bytes of each task.
        speeds: Bytes per second of each node.
        lost_at: Seconds at which nodes vanish; what they were doing starts again elsewhere.
    """
    lost = dict(lost_at or {})
    # (minus size, when it is known that it must be done)
    waiting = [(-size, 0.0) for size in sizes]
    heapq.heapify(waiting)
    free = [(0.0, node) for node in range(len(speeds))]
    broken: list[tuple[float, float]] = []
    ends = [0.0]
    while waiting or broken:
        if not waiting:
            time, size = heapq.heappop(broken)
            heapq.heappush(waiting, (-size, time))
        if not free:
            raise ValueError("all nodes are lost")
        now, node = heapq.heappop(free)
        while broken and broken[0][0] <= now:
            time, size = heapq.heappop(broken)
            heapq.heappush(waiting, (-size, time))
        size, known = heapq.heappop(waiting)
        end = max(now, known) - size / speeds[node]
        if end <= lost.get(node, math.inf):
            ends.append(end)
            heapq.heappush(free, (end, node))
        elif now < lost[node]:
            heapq.heappush(broken, (lost[node], -size))
        else:
            heapq.heappush(waiting, (size, known))
    return max(ends)


def lower_bound(sizes: Sequence[float], speeds: Sequence[float]) -> float:
    """Return the time that no schedule of these tasks can beat.

    All nodes busy to the end; the biggest task on the fastest node; and, as k * nodes + 1 tasks
    put k + 1 of them on one node, the k + 1 smallest of the biggest k * nodes + 1.
    """
    if not sizes:
        return 0.0
    fastest, num_nodes = max(speeds), len(speeds)
    ordered = sorted(sizes, reverse=True)
    bounds = [sum(ordered) / sum(speeds), ordered[0] / fastest]
    for k in range(1, (len(ordered) - 1) // num_nodes + 1):
        last = k * num_nodes
        bounds.append(sum(ordered[last - k : last + 1]) / fastest)
    return max(bounds)


def estimate(sizes: Sequence[float], *, num_nodes: int, node_bandwidth: float) -> dict[str, Any]:
    """Return the expected time on equal nodes.

    Args:
        sizes: Bytes read and written by each task.
        num_nodes: Number of nodes.
        node_bandwidth: Bytes per second that one node reads and writes in all.
    """
    speeds = [node_bandwidth] * num_nodes
    seconds = simulate(sizes, speeds)
    busy = sum(sizes) / node_bandwidth
    return {
        "num_nodes": num_nodes,
        "node_bandwidth_bytes": node_bandwidth,
        "num_tasks": len(sizes),
        "node_hours": round(seconds * num_nodes / 3600, 3),
        "seconds": round(seconds, 3),
        "lower_bound_seconds": round(lower_bound(sizes, speeds), 3),
        "share_idle": round(1 - busy / (seconds * num_nodes), 3) if seconds else 0.0,
    }
