"""Replicas that no node has room for: who waits is told so, and by what the room is taken."""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
import time
from collections.abc import Iterator, Mapping

import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from expo_ray.ray_internals import job_table, living_actors, starting_actors
from expo_ray.serving.keeper import on_cluster

POLL_SECONDS = 5.0
REPEAT_SECONDS = 60.0
_MAX_LISTED = 8
_KINDS = ("CPU", "GPU")
_REPLICA = "SERVE_REPLICA::"
# Serve's words, after 30 s, for replicas without a node, and for some that have one and are slow.
_UNPLACED = "to be scheduled"

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def told_when_unplaced(app_name: str) -> Iterator[None]:
    """Warn, again and again, while replicas of an application find no room on the cluster."""
    done = threading.Event()
    thread = threading.Thread(target=_watch, args=(app_name, done), daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(timeout=POLL_SECONDS)


def _watch(app_name: str, done: threading.Event) -> None:
    next_warning = 0.0
    while not done.wait(POLL_SECONDS) and ray.is_initialized():
        # Only a message: what is wrong with the cluster shows where the work is done.
        with contextlib.suppress(RayError, RayServeException, RuntimeError, TimeoutError):
            waiting = _unplaced(app_name)
            if waiting and time.monotonic() >= next_warning and not done.is_set():
                next_warning = time.monotonic() + REPEAT_SECONDS
                logger.warning("%s", explain(waiting, on_cluster(holders), _totals()))


def _unplaced(app_name: str) -> int:
    """Return how many replicas of an application have waited long for a node."""
    status = serve.status().applications.get(app_name)
    if status is None:
        return 0
    waiting: int = sum(
        deployment.replica_states.get("STARTING", 0)
        for deployment in status.deployments.values()
        if _UNPLACED in deployment.message
    )
    if not waiting:
        return 0
    placed: int = on_cluster(functools.partial(num_placed, app_name))
    return max(0, waiting - placed)


def num_placed(app_name: str) -> int:
    """Return how many starting replicas of an application have their room, and are only slow.

    Not for a `ray://` driver, see `on_cluster`.
    """
    prefix = f"{_REPLICA}{app_name}#"
    return sum(a.name.startswith(prefix) and a.pid > 0 for a in starting_actors())


def explain(num_waiting: int, held: Mapping[str, Mapping[str, float]], totals: str) -> str:
    """Return what a waiting user is told.

    Args:
        num_waiting: Replicas without a node.
        held: CPUs and GPUs by holder.
        totals: What is free in the cluster, in words.
    """
    lines = [f"{who}: {_amounts(what)}" for who, what in held.items()]
    more = [f"and {len(lines) - _MAX_LISTED} more"] if len(lines) > _MAX_LISTED else []
    listed = "; ".join([*lines[:_MAX_LISTED], *more]) or "tasks, or nothing that is known"
    return (
        f"{num_waiting} replica(s) wait for room on the cluster ({totals}); it is held by "
        f"{listed}. They start when it is free: end what is not needed, add nodes, or give "
        "fewer replicas."
    )


def holders() -> dict[str, dict[str, float]]:
    """Return the CPUs and GPUs that actors hold, by application or name, the largest first.

    Not for a `ray://` driver, see `on_cluster`.
    """
    jobs = {str(job["JobID"]): job for job in job_table()}
    held: dict[str, dict[str, float]] = {}
    for actor in living_actors():
        for kind in _KINDS:
            if amount := actor.required_resources.get(kind, 0.0):
                mine = held.setdefault(_holder(actor, jobs), {})
                mine[kind] = mine.get(kind, 0.0) + amount
    return dict(sorted(held.items(), key=lambda item: -sum(item[1].values())))


def _holder(actor: object, jobs: Mapping[str, Mapping[str, object]]) -> str:
    name, class_name = getattr(actor, "name", ""), getattr(actor, "class_name", "")
    if name.startswith(_REPLICA):
        return "Serve application " + name.removeprefix(_REPLICA).split("#")[0]
    job = getattr(actor, "job_id", b"").hex()
    facts = jobs.get(job, {})
    driver = f"{facts.get('DriverIPAddress', '?')} pid {facts.get('DriverPid', '?')}"
    return f"actor {name or class_name} of job {job} ({driver})"


def _amounts(resources: Mapping[str, float]) -> str:
    return ", ".join(f"{amount:g} {kind}" for kind, amount in resources.items() if amount)


def _totals() -> str:
    total, free = ray.cluster_resources(), ray.available_resources()
    kinds = [kind for kind in _KINDS if total.get(kind)]
    return ", ".join(f"{free.get(k, 0):g} of {total[k]:g} {k} free" for k in kinds)
