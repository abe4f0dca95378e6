"""What becomes of our Serve applications once their driver is gone, on a cluster that stays.

Serve's applications outlive whoever started them. So every driver leaves a keeper on the cluster, a
detached actor without resources: when its driver's job has ended, in whatever way, it takes the
job's applications down, and Serve itself where one of us had started it and nobody uses it.
"""

from __future__ import annotations

import contextlib
import secrets
import threading
import time
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.util import list_named_actors

from expo_ray import ray_internals, serve_internals
from expo_ray.serving.alpha_memory import NAMESPACE, AlphaMemory, board_name

POLL_SECONDS = 2.0
PATIENCE_SECONDS = 60.0
_KEEPER = "expo-ray-keeper-"
_APPLICATION = "expo-ray-"
_STARTER_KEY = "serve-controller-of-expo-ray"
_PRIVATE_KEY = "ray-of-a-driver"


def application_name(label: str) -> str:
    """Return a new name for an application of this driver's job."""
    return f"{_APPLICATION}{label}-{_own_job()}-{secrets.token_hex(4)}"


def hire_keeper() -> None:
    """Leave a keeper for this driver's job, and wait until those of ended jobs have cleaned up.

    Idempotent. A Ray that this process started needs none: it ends with its driver.
    """
    if ray_internals.is_head():
        # Others may have joined, and their keepers must leave our Serve alone.
        ray_internals.remember(_PRIVATE_KEY, "1", namespace=NAMESPACE)
        return
    job = _own_job()
    options = {
        "name": _KEEPER + job,
        "namespace": NAMESPACE,
        "get_if_exists": True,
        "lifetime": "detached",
        "num_cpus": 0,
        "max_restarts": -1,
    }
    ray.remote(Keeper).options(**options).remote(job)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while _keepers_of_others() - on_cluster(live_jobs) and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS / 4)


def serve_was_started() -> None:
    """Note that the Serve that runs now was started by one of us."""
    if not ray_internals.is_head():
        ray_internals.remember(
            _STARTER_KEY, serve_internals.serve_controller() or "", namespace=NAMESPACE
        )


def live_jobs() -> set[str]:
    """Return the ids of the cluster's jobs whose driver lives; not for a `ray://` driver."""
    return {str(job["JobID"]) for job in ray_internals.job_table() if not job["IsDead"]}


def on_cluster(function: Any) -> Any:
    """Call a function in a process that sees the cluster's own tables: here, or in a task."""
    if ray_internals.is_client():
        return ray.get(ray.remote(num_cpus=0)(function).remote(), timeout=PATIENCE_SECONDS)
    return function()


class Keeper:
    """Waits for the end of a job, cleans up after it and ends itself; an actor.

    Args:
        job: Id of the job.
    """

    def __init__(self, job: str) -> None:
        self._job = job
        self._myself = ray.get_runtime_context().current_actor
        # Not a method that its driver calls: the driver may be gone before it can.
        threading.Thread(target=self._keep, daemon=True).start()

    def _keep(self) -> None:
        while True:
            # Whatever is not reachable now is so for a moment, or the cluster ends.
            with contextlib.suppress(RayError, RayServeException, RuntimeError, TimeoutError):
                if self._job not in live_jobs():
                    clean_up_after(self._job)
                    ray.kill(self._myself)
                    return
            time.sleep(POLL_SECONDS)


def clean_up_after(job: str) -> None:
    """Take the applications of a job down, and Serve where it is ours and nobody needs it."""
    if serve_internals.serve_controller() is None:
        return
    names = list(serve.status().applications)
    for name in names:
        if name.startswith(_APPLICATION) and f"-{job}-" in name:
            serve.delete(name)
            _stop_boards(name)
    others = _keepers_of_others(job) & live_jobs()
    starter = ray_internals.recall(_STARTER_KEY, namespace=NAMESPACE)
    is_ours = starter == (serve_internals.serve_controller() or "")
    is_ours &= ray_internals.recall(_PRIVATE_KEY, namespace=NAMESPACE) is None
    if is_ours and not others and not serve.status().applications:
        serve.shutdown()
        ray_internals.forget(_STARTER_KEY, namespace=NAMESPACE)


def _stop_boards(app_name: str) -> None:
    prefix = board_name(app_name, "")
    for actor in list_named_actors(all_namespaces=True):
        if actor["namespace"] == NAMESPACE and actor["name"].startswith(prefix):
            with contextlib.suppress(ValueError):
                ray.kill(ray.get_actor(actor["name"], namespace=NAMESPACE))
            AlphaMemory(actor["name"]).forget()


def _keepers_of_others(job: str | None = None) -> set[str]:
    """Return the ids of the jobs that have a keeper, but for one, by default ours."""
    actors = list_named_actors(all_namespaces=True)
    names = [actor["name"] for actor in actors if actor["namespace"] == NAMESPACE]
    found = {name.removeprefix(_KEEPER) for name in names if name.startswith(_KEEPER)}
    return found - {job or _own_job()}


def _own_job() -> str:
    return str(ray.get_runtime_context().get_job_id())
