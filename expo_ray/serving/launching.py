"""Starting Serve and applications on the connected Ray, and taking them down again."""

from __future__ import annotations

import errno
import logging
import os
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from expo_ray.cluster import is_for_handles, worker_nodes
from expo_ray.errors import ConfigError, ServingError, argument
from expo_ray.haproxy import listen_at
from expo_ray.ray_start import free_port
from expo_ray.remote_errors import brought_home
from expo_ray.serve_internals import (
    haproxy_folder,
    look_often,
    make_configs_in_turns,
    serve_endpoint,
    start_deleting,
)
from expo_ray.serving.engines.devices import has_gpu
from expo_ray.serving.keeper import application_name, hire_keeper, serve_was_started
from expo_ray.serving.placement_watch import told_when_unplaced

LOCALHOST = "127.0.0.1"
_LOGGING = {"log_level": "WARNING", "enable_access_log": False}
_DELIVERY_SECONDS = 3
_SHUTDOWN = {
    "logging_config": _LOGGING,
    # Nothing of ours has to be drained when an application is taken down.
    "graceful_shutdown_wait_loop_s": 0.1,
    "graceful_shutdown_timeout_s": 2,
}


def ensure_serve(*, host: str = LOCALHOST, port: int | None = None) -> str:
    """Start Serve where it does not run yet; its address is fixed for the life of the cluster.

    Args:
        host: Address to listen on.
        port: Port to listen on; None takes the running Serve's, else a free one.

    Returns:
        The URL of the HTTP proxy, without a trailing slash.

    Raises:
        ConfigError: The port is in use, or Serve listens elsewhere already.
        ServingError: Serve did not start.
    """
    quiet_logs()
    look_often()
    make_configs_in_turns()
    hire_keeper()
    running = serve_endpoint()
    if running is None:
        if port is None:
            port = free_port(host)
        require_free_port(host, port)
        front = haproxy_folder()
        if front is not None:
            listen_at(front, host)
        try:
            serve.start(
                # What HAProxy stands before is for this machine alone.
                http_options={"host": host if front is None else LOCALHOST, "port": port},
                proxy_location="Disabled" if is_for_handles() else None,
                logging_config=_LOGGING,
            )
        except (RayError, RayServeException, TimeoutError) as error:
            raise brought_home(
                error,
                "Ray Serve did not start",
                ServingError,
                hint="the same command again may find the machine with less to do",
            ) from error
        finally:
            serve_was_started()
    elif port is not None and running != (host, port):
        raise ConfigError(
            "Ray Serve of this cluster listens on another address already",
            where=f"{argument('host')}, {argument('port')}",
            got=f"{host}:{port}",
            expected=f"{running[0]}:{running[1]}",
            hint=f"give that address, or another cluster with {argument('address')}",
        )
    actual_host, actual_port = serve_endpoint() or (host, port)
    # A wildcard address is for listening, not for connecting.
    reachable = LOCALHOST if actual_host in ("0.0.0.0", "::") else actual_host  # noqa: S104
    return f"http://{reachable}:{actual_port}"


def quiet_logs() -> None:
    """Keep back what Serve logs here, unless logs were asked for.

    Its warnings are about moments that pass by themselves. What it has for language models dumps
    all options at every start, through loggers that take a level of their own when imported.
    """
    if logging.getLogger("expo_ray").isEnabledFor(logging.DEBUG):
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        return
    names = [name for name in logging.root.manager.loggerDict if name.startswith("ray.serve.")]
    for name in ("ray.serve", *names):
        logging.getLogger(name).setLevel(logging.ERROR)


def require_free_port(host: str, port: int) -> None:
    """Check that nobody listens on a port.

    Raises:
        ConfigError: Somebody does, or the address is not of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
                raise ConfigError(
                    "this machine has no such address",
                    where=argument("host"),
                    got=f"{host} ({error.strerror})",
                    expected="127.0.0.1, 0.0.0.0, or an address of this machine",
                ) from error
            raise ConfigError(
                "cannot listen on this port",
                where=argument("port"),
                got=f"{host}:{port} ({error.strerror})",
                hint=f"give a free one with {argument('port')}",
            ) from error


@contextmanager
def application(
    app: serve.Application, *, label: str, route: str | None = None
) -> Iterator[tuple[Any, str | None]]:
    """Run a Serve application for the length of a `with` block.

    Args:
        app: What `Deployment.bind` returned.
        label: A few letters for its name, which is made unique.
        route: URL prefix; "" derives one from the name, None means no HTTP.

    Yields:
        Its deployment handle and its route.

    Raises:
        ServingError: Its replicas do not start.
    """
    name = application_name(label)
    route_prefix = f"/{name}" if route == "" else route
    with told_when_unplaced(name):
        try:
            try:
                handle = serve.run(app, name=name, route_prefix=route_prefix)
            except (RuntimeError, RayServeException, RayError) as error:
                told = RuntimeError(f"{error}\n{_why_not_deployed(name)}")
                told.__cause__ = error.__cause__
                raise brought_home(
                    told, "the replicas did not start", ServingError, where=label
                ) from error
            yield handle, route_prefix
        finally:
            if ray.is_initialized():
                _take_down(name, wait=sys.exc_info()[0] is None and not is_for_handles())


def _why_not_deployed(name: str) -> str:
    """Return what Serve tells of the deployments of an application that failed."""
    with suppress(RayError, RayServeException):
        status = serve.status().applications.get(name)
        if status is not None:
            return "\n".join(found.message for found in status.deployments.values())
    return ""


def _take_down(name: str, *, wait: bool) -> None:
    """Delete an application; on the way out of a command nobody has to wait until it is gone.

    Serve goes on with it by itself, or ends with the Ray of the command: a replica that loads its
    model, or a loaded machine, would take a minute.
    """
    if wait:
        serve.delete(name)
        return
    with suppress(RayError, RayServeException):
        # What was not delivered is dropped when this driver goes.
        start_deleting([name], timeout_seconds=_DELIVERY_SECONDS)


def replica_options(num_replicas: int) -> dict[str, Any]:
    """Return deployment options: one CPU per replica, and one GPU where the cluster has any.

    Args:
        num_replicas: How many.

    Raises:
        ConfigError: The cluster can never hold so many.
    """
    num_gpus = int(has_gpu())
    _require_resources(num_replicas, {"CPU": 1, "GPU": num_gpus})
    return {
        "num_replicas": num_replicas,
        "ray_actor_options": {"num_cpus": 1, "num_gpus": num_gpus},
        **_SHUTDOWN,
    }


def replica_threads(deployment: Mapping[str, Any]) -> int:
    """Return how many threads a replica without a GPU computes with: its share of the cores.

    Of the CPU that keeps its place Ray would make a single thread. `OMP_NUM_THREADS` counts, where
    it is set.

    Args:
        deployment: Options of its deployment.
    """
    if told := os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip():
        return max(1, int(told)) if told.isdigit() else 1
    scaled = deployment.get("autoscaling_config") or {}
    num_replicas = int(deployment.get("num_replicas") or scaled.get("max_replicas") or 1)
    cores = [int(node["Resources"]["CPU"]) for node in worker_nodes()]
    return max(1, min(max(cores, default=1), sum(cores) // num_replicas))


def worker_options(num_replicas: int, *, num_workers: int) -> dict[str, Any]:
    """Return deployment options of replicas with workers, whose resources `ray.serve.llm` adds.

    Args:
        num_replicas: How many.
        num_workers: How many workers each has, with one GPU or CPU.

    Raises:
        ConfigError: The cluster can never hold so many.
    """
    _require_resources(num_replicas, {"GPU" if has_gpu() else "CPU": num_workers})
    return {
        "num_replicas": num_replicas,
        **_SHUTDOWN,
    }


def _require_resources(num_replicas: int, needs: Mapping[str, float]) -> None:
    if num_replicas < 1:
        raise ConfigError(
            "too few replicas", where="num_replicas", got=num_replicas, expected="1 or more"
        )
    resources = ray.cluster_resources()
    for kind, amount in needs.items():
        if num_replicas * amount > resources.get(kind, 0):
            raise ConfigError(
                f"the Ray cluster has too few {kind}s for the replicas",
                where="num_replicas",
                got=f"{num_replicas} replicas with {amount:g} {kind} each",
                expected=f"{resources.get(kind, 0):g} {kind} or fewer in all",
            )
