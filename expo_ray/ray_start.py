"""Starting or joining Ray so that a command works in any folder and runs nothing that lies there.

Ray puts the folder of a command first on the path of its workers, and under `uv run` sends that
folder to them; whoever stands in a downloaded checkpoint would run the code beside the weights.
What belongs here: folders, environment and errors of `ray.init`. Sessions are in `cluster.py`.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
import sys
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from expo_ray import haproxy
from expo_ray.errors import ConfigError, ExpoError, WorkError, argument
from expo_ray.ray_internals import (
    agent_on_any_port,
    changed,
    find_cluster,
    folder_option,
    longest_socket,
    on_loopback,
    own_path_only,
    send_token,
    without_uv_upload,
)
from expo_ray.serve_internals import haproxy_template, keep_haproxy_folder, proxy_settings

logger = logging.getLogger(__name__)

_TOKEN_VARIABLES = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
_MAX_SOCKET_BYTES = 103 if sys.platform == "darwin" else 107
_PROBE_BYTES = 1 << 20
_PLACES = (Path("/tmp"), Path("/var/tmp"))  # noqa: S108 - as Ray does


def start_local(
    num_cpus: int | None, options: dict[str, Any], *, with_haproxy: bool = True
) -> Path | None:
    """Start a Ray of our own on this machine.

    Args:
        num_cpus: Logical CPUs; None takes what the machine has.
        options: Further arguments of `ray.init`.
        with_haproxy: Whether services are reached through HAProxy, where it can be had.

    Returns:
        The folder of that HAProxy (`haproxy.py`), to be removed in the end.

    Raises:
        ConfigError: No folder is fit for its files.
        WorkError: It did not start for another reason.
    """
    import ray

    folder = _session_folder()
    _ensure_token()
    # Workers and their children keep the folder they stand in off their path.
    environment = {"PYTHONSAFEPATH": "1", "PYTHONPATH": _safe_python_path()}
    template = haproxy_template() if with_haproxy else None
    front = haproxy.prepare([folder, *_PLACES], template)
    environment |= proxy_settings(front, free_port())
    try:
        with (
            without_uv_upload(),
            changed(os.environ, environment),
            agent_on_any_port(),
            on_loopback(children=True),  # all that it opens listens there
        ):
            ray.init(
                address="local",
                num_cpus=num_cpus,
                include_dashboard=False,
                job_config=own_path_only(),
                **folder_option(folder),
                **options,
            )
    except Exception as error:  # Ray raises even a bare one
        haproxy.remove(front)
        raise _not_started(error, folder) from error
    if front is not None:
        keep_haproxy_folder(front)
    return front


def join(address: str, options: dict[str, Any]) -> None:
    """Connect to a cluster that runs.

    Args:
        address: `auto`, `host:port` or `ray://...`.
        options: Further arguments of `ray.init`.

    Raises:
        ConfigError: It is not there, or does not take this process.
    """
    import ray

    # The drivers of Ray's client stand on the cluster; they know nothing of our folder.
    is_client = "://" in address
    job = {} if is_client else {"job_config": own_path_only()}
    if is_client:
        send_token()
    try:
        is_local = not is_client and _is_for_this_machine(address)
        with without_uv_upload(), on_loopback() if is_local else nullcontext():
            ray.init(address=address, **job, **options)
    except Exception as error:  # grpc's, Ray's and bare ones
        raise not_joined(address, error) from error


def _is_for_this_machine(address: str) -> bool:
    """Whether a Ray listens on loopback alone, as our own do; Ray would ask the network's address.

    Args:
        address: `auto` or `host:port`.
    """
    import ray

    with on_loopback():
        host, _, port = find_cluster(address).rpartition(":")
    if host not in ("127.0.0.1", "localhost"):
        return False
    try:
        socket.create_connection((ray.util.get_node_ip_address(), int(port)), timeout=1).close()
    except OSError:
        return True
    return False


def free_port(host: str = "127.0.0.1") -> int:
    """Return a port of an address on which nobody listens."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def _safe_python_path() -> str | None:
    """Return PYTHONPATH without empty entries, as `$UNSET:/x` has: they mean the current folder."""
    entries = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return os.pathsep.join(entry for entry in entries if entry) or None


def _session_folder() -> Path:
    """Return a folder in which Ray can keep its sockets and logs: the user's where it is fit."""
    named = next((name for name in ("RAY_TMPDIR", "TMPDIR") if os.environ.get(name)), None)
    places = [Path(os.environ[named])] if named else []
    problems: list[str] = []
    for place in [*places, *_PLACES]:
        folder = place.absolute() / "ray"
        problem = _unfit(folder)
        if problem is None:
            if problems:
                logger.warning("%s: Ray keeps its files in %s instead", problems[0], folder)
            return folder
        problems.append(problem)
    raise ConfigError(
        "no temporary folder is fit for Ray",
        where=named or "TMPDIR",
        got="; ".join(problems),
        expected="a folder that can be written, has some space and a short name",
        hint="set RAY_TMPDIR to one",
    )


def _unfit(folder: Path) -> str | None:
    length = len(os.fsencode(longest_socket(folder)))
    if length > _MAX_SOCKET_BYTES:
        room = _MAX_SOCKET_BYTES - length + len(os.fsencode(folder.parent))
        return f"{folder.parent} has a name of more than {room} bytes, too long for sockets in it"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(bytes(_PROBE_BYTES))
    except OSError as error:
        return f"{folder}: {error.strerror}"
    return None


def _ensure_token() -> None:
    """Give a local Ray its token where it could not keep one: the home folder may be read-only."""
    if any(name in os.environ for name in _TOKEN_VARIABLES):
        return
    kept = Path.home() / ".ray" / "auth_token"
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        if not kept.is_file():
            tempfile.TemporaryFile(dir=kept.parent).close()
    except OSError:
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


# What Ray says when it refuses, in its own words: what that means, and the cure.
_REFUSALS = {
    "version mismatch": (
        "the cluster has another version of Ray or Python",
        "run the command in the cluster's environment, or install the versions that it has",
    ),
    "token": (
        "the cluster does not take the token of this process",
        "give the cluster's own in RAY_AUTH_TOKEN, or its file in RAY_AUTH_TOKEN_PATH",
    ),
}
_NOT_THERE = (
    "cannot connect to the Ray cluster",
    "start one with `ray start --head`, or leave --address out for a local Ray",
)
# Why, Ray prints and does not raise.
_REFUSES = (
    "something listens at this address, and does not take this process into a Ray cluster",
    "is its token another one (RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH), or its port not that of "
    "Ray's head? The lines before say more",
)


def _listens(address: str) -> bool:
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        return False
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=1).close()
    except OSError:
        return False
    return True


def not_joined(address: str, error: Exception) -> ConfigError:
    """Return what to tell of a cluster that could not be joined.

    Args:
        address: As it was given.
        error: What Ray or the network said.
    """
    said = " ".join(str(error).split()) or type(error).__name__
    refusals = (found for words, found in _REFUSALS.items() if words in said.lower())
    message, hint = next(refusals, _REFUSES if _listens(address) else _NOT_THERE)
    return ConfigError(message, where=argument("address"), got=f"{address} ({said})", hint=hint)


def _not_started(error: Exception, folder: Path) -> ExpoError:
    said = " ".join(str(error).split()) or type(error).__name__
    return WorkError(
        "a local Ray did not start",
        got=f"{type(error).__name__}: {said}",
        hint=f"its logs in {folder}/session_latest/logs say more; is there memory and space left?",
    )
