"""Ray's private interfaces: what this package takes of them, one small function each.

Ray promises nothing about them, so each function says why no public way will do. They were read in
Ray 2.60; pyproject.toml keeps later versions away until `tests/test_ray_internals.py` has passed
with them. What belongs here: the call alone. What it is good for stands with its callers. Those of
Serve are in `serve_internals`.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any

_JOB_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"
_UV_SWITCH = "RAY_ENABLE_UV_RUN_RUNTIME_ENV"
_CLUSTER_SWITCH = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"  # asked on Linux, too


# How Ray is started. It reads its environment when it is imported or started; `ray.init` and
# `serve.start` have no arguments for any of this.


def set_defaults(*, proxy_callback: str) -> None:
    """Set what every Ray of ours is started with, where the user has not set it.

    Args:
        proxy_callback: Dotted name of the function that Serve's HTTP proxies call at their start.
    """
    defaults = {
        # Ray warns about a future default on every start; the new behaviour is the one we want.
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        # Serve's proxy then takes a streamed token from a replica for two thirds of the time.
        "RAY_SERVE_PROXY_USE_GRPC": "1",
        # A proxy that is not up within 5 s, on a machine that does much else, would be killed, and
        # with it the start of Serve.
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
        "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": proxy_callback,
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)


@contextlib.contextmanager
def on_loopback(*, children: bool = False) -> Iterator[None]:
    """Have Ray take 127.0.0.1 for the address of this machine, for the length of a `with` block.

    Args:
        children: Also processes that are started meanwhile.
    """
    from ray._private import ray_constants

    environment = {_CLUSTER_SWITCH: "0"} if children else {}
    with (
        changed(os.environ, environment),
        changed(vars(ray_constants), {"ENABLE_RAY_CLUSTER": False}),
    ):
        yield


@contextlib.contextmanager
def agent_on_any_port() -> Iterator[None]:
    """Have the agent of a Ray that is started meanwhile listen on a free port, not on 52365.

    Where another Ray of the machine has that one, it is tried for four seconds, in which nothing
    else goes on, and the agent then does without. `ray.init` has no argument for it.
    """
    from ray._private import parameter

    free = functools.partial(parameter.RayParams, dashboard_agent_listen_port=0)
    with changed(vars(parameter), {"RayParams": free}):
        yield


@contextlib.contextmanager
def without_uv_upload() -> Iterator[None]:
    """Under `uv run` Ray sends the current folder to all workers; leave that to whoever asks."""
    from ray._private import ray_constants

    job = json.loads(os.environ.get(_JOB_CONFIG) or "{}")
    submitted = "working_dir" in (job.get("runtime_env") or {})
    wanted = submitted or _UV_SWITCH in os.environ
    enabled = ray_constants.RAY_ENABLE_UV_RUN_RUNTIME_ENV and wanted
    with changed(vars(ray_constants), {_UV_SWITCH: enabled}):
        yield


def uploaded_files(folder: Path, excludes: Sequence[str], *, most_bytes: int) -> dict[str, int]:
    """Return what Ray uploads of a working directory, with its bytes: it tells nobody before.

    Args:
        folder: The working directory; what .gitignore and Ray's own defaults name is left out.
        excludes: As `runtime_env` takes them.
        most_bytes: Once there are more, no more files are looked at.
    """
    from ray._private import ray_constants
    from ray._private.runtime_env import packaging

    class _EnoughError(Exception):
        """Enough was found."""

    sizes: dict[str, int] = {}
    bytes_left = most_bytes

    def add(path: Path) -> None:
        nonlocal bytes_left
        if path.is_file():
            sizes[path.relative_to(folder).as_posix()] = size = path.stat().st_size
            bytes_left -= size
        if bytes_left < 0:
            raise _EnoughError

    left_out = packaging._get_excludes(
        folder, [*ray_constants.get_runtime_env_default_excludes(), *excludes]
    )
    quiet = logging.Logger("uploads", logging.CRITICAL)
    with contextlib.suppress(_EnoughError):
        packaging._dir_travel(folder, [left_out], add, include_gitignore=True, logger=quiet)
    return sizes


@contextlib.contextmanager
def changed(names: MutableMapping[str, Any], changes: Mapping[str, Any]) -> Iterator[None]:
    """Set names for the length of a `with` block; None takes one away."""
    before = {name: names.get(name) for name in changes}

    def set_all(values: Mapping[str, Any]) -> None:
        for name, value in values.items():
            if value is None:
                names.pop(name, None)
            else:
                names[name] = value

    set_all(changes)
    try:
        yield
    finally:
        set_all(before)


def own_path_only() -> Any:
    """Return a job config that sends workers neither the folder of the command nor its script's.

    Public settings add to the path of workers and take nothing from it.
    """
    from ray.job_config import JobConfig

    class OwnPathOnly(JobConfig):  # type: ignore[misc]
        def _get_proto_job_config(self) -> Any:
            self._py_driver_sys_path.clear()
            return super()._get_proto_job_config()

    return OwnPathOnly()


def folder_option(folder: Path) -> dict[str, str]:
    """Return the argument of `ray.init` that names the folder of sockets and logs.

    The environment variable that would do it is read only once, when Ray is imported.
    """
    return {"_temp_dir": str(folder)}


def longest_socket(folder: Path) -> Path:
    """Return the longest address of a socket that Ray makes in such a folder."""
    return folder / "session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"


def find_cluster(address: str) -> str:
    """Return `host:port` of what `auto` or an address stands for, without joining; "" for none."""
    from ray._private import services

    return services.canonicalize_bootstrap_address(address) or ""


def send_token() -> None:
    """Have `ray://` connections send a token that is there, as other drivers do by themselves."""
    from ray._private.authentication import authentication_token_setup

    logging.getLogger(authentication_token_setup.__name__).setLevel(logging.ERROR)
    authentication_token_setup.maybe_enable_token_auth_if_token_available(False)


def is_submitted_job() -> bool:
    """Whether this process is the driver of a submitted job; public calls need a connection."""
    return _JOB_CONFIG in os.environ


# What a connected process can know of its cluster. Public calls either do not tell it, or need the
# dashboard, which a local Ray of ours does not start.


def is_client() -> bool:
    """Whether this driver is connected by `ray://`, and sees nothing of the cluster's own tables.

    The public test, `ray.util.client.ray.is_connected`, is of a package for Ray's developers.
    """
    from ray.util.client import ray as client

    return bool(client.is_connected())


def is_head() -> bool:
    """Whether this process has started the Ray to which it is connected."""
    from ray._private import worker

    node = worker._global_node
    return node is not None and bool(node.is_head())


def logs_folder() -> Path:
    """Return the folder of this node's logs."""
    from ray._private import worker

    return Path(worker._global_node.get_logs_dir_path())


def job_table() -> list[dict[str, Any]]:
    """Return the cluster's jobs: `JobID`, `IsDead`, `DriverIPAddress`, `DriverPid`, ...

    Not for a `ray://` driver.
    """
    from ray._private.state import state

    return list(state.job_table())


def living_actors() -> list[Any]:
    """Return the actors that run: `name`, `class_name`, `job_id`, `required_resources`, ...

    `ray.util.list_named_actors` leaves the resources out. Not for a `ray://` driver.
    """
    return _actors("ALIVE")


def starting_actors() -> list[Any]:
    """Return the actors that do not run yet; one that has its room on a node has a `pid`.

    Not for a `ray://` driver.
    """
    return _actors("PENDING_CREATION")


def _actors(state_name: str) -> list[Any]:
    from ray._private.state import state
    from ray.core.generated.gcs_pb2 import ActorTableData

    rows = state._connect_and_get_accessor().get_actor_table(None, state_name)
    return [ActorTableData.FromString(row) for row in rows]


def node_group_limits() -> list[int]:
    """Return how many nodes each group of an autoscaled cluster may have, -1 for no limit.

    Nothing where there is no autoscaler, or it tells nothing. Not for a `ray://` driver.
    """
    from ray._private.state import state

    config = state.get_cluster_config()
    return [group.max_count for group in config.node_group_configs] if config else []


def autoscaled_node_types() -> list[str]:
    """Return the types of the nodes that a monitor of the autoscaler knows.

    A monitor that only watches names every type after a node: `node_...`.
    """
    status = json.loads(recall("__autoscaling_status") or "{}")
    return list(status.get("autoscaler_report", {}).get("active_nodes", {}))


# Ray's own store: small notes that live as long as the cluster's head, without an actor to hold
# them. Nothing public is as small.


def remember(key: str, value: str, *, namespace: str) -> None:
    """Keep a note, in place of any that was there."""
    from ray.experimental.internal_kv import _internal_kv_put

    _internal_kv_put(key, value, namespace=namespace)


def recall(key: str, *, namespace: str | None = None) -> str | None:
    """Return a note; None where there is none. Without a namespace: one of Ray's own."""
    from ray.experimental.internal_kv import _internal_kv_get

    kept = _internal_kv_get(key, namespace=namespace)
    return None if kept is None else kept.decode()


def forget(key: str, *, namespace: str) -> None:
    """Remove a note, where there is one."""
    from ray.experimental.internal_kv import _internal_kv_del

    _internal_kv_del(key, namespace=namespace)


# Others.


@contextlib.contextmanager
def quiet_data() -> Iterator[None]:
    """Keep back what Ray Data logs of each execution, which no setting does."""
    log = logging.getLogger("ray.data._internal.execution")
    level = log.level
    log.setLevel(logging.WARNING)
    try:
        yield
    finally:
        log.setLevel(level)
