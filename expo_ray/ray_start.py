"""Starting or joining Ray so that a command works in any folder and runs nothing that lies there.

Ray puts the folder of a command first on the path of its workers, and under `uv run` sends that
folder to them; whoever stands in a downloaded checkpoint would run the code beside the weights.
What belongs here: folders, environment and errors of `ray.init`. Sessions are in `cluster.py`.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import socket
import sys
import tempfile
from collections.abc import Iterator, Mapping, MutableMapping
from pathlib import Path
from typing import Any

from expo_ray.errors import ConfigError, ExpoError, WorkError

logger = logging.getLogger(__name__)

# Of a local Ray: its workers and their children keep the folder they stand in off their path, and
# all that it opens listens on 127.0.0.1. The second name is Ray's, and is asked on Linux too.
_LOCAL_ENVIRONMENT = {"PYTHONSAFEPATH": "1", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
_TOKEN_VARIABLES = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
_SOCKET = "session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"
_MAX_SOCKET_BYTES = 103 if sys.platform == "darwin" else 107
_PROBE_BYTES = 1 << 20
_JOB_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"
_UV_SWITCH = "RAY_ENABLE_UV_RUN_RUNTIME_ENV"


def start_local(num_cpus: int | None, options: dict[str, Any]) -> None:
    """Start a Ray of our own on this machine.

    Args:
        num_cpus: Logical CPUs; None takes what the machine has.
        options: Further arguments of `ray.init`.

    Raises:
        ConfigError: No folder is fit for its files.
        WorkError: It did not start for another reason.
    """
    import ray
    from ray._private import ray_constants

    folder = _session_folder()
    _ensure_token()
    environment = {**_LOCAL_ENVIRONMENT, "PYTHONPATH": _safe_python_path()}
    try:
        with (
            _without_uv_upload(),
            _changed(os.environ, environment),
            _changed(vars(ray_constants), {"ENABLE_RAY_CLUSTER": False}),
        ):
            ray.init(
                address="local",
                num_cpus=num_cpus,
                include_dashboard=False,
                job_config=_job_config(),
                _temp_dir=str(folder),
                **options,
            )
    except Exception as error:  # Ray raises even a bare one
        raise _not_started(error, folder) from error


def join(address: str, options: dict[str, Any]) -> None:
    """Connect to a cluster that runs.

    Args:
        address: `auto`, `host:port` or `ray://...`.
        options: Further arguments of `ray.init`.

    Raises:
        ConfigError: It is not there, or does not take this process.
    """
    import ray
    from ray._private import ray_constants

    # The drivers of Ray's client stand on the cluster; they know nothing of our folder.
    job = {} if "://" in address else {"job_config": _job_config()}
    if not job:
        # Other drivers send a token that is there by themselves.
        from ray._private.authentication import authentication_token_setup

        logging.getLogger(authentication_token_setup.__name__).setLevel(logging.ERROR)
        authentication_token_setup.maybe_enable_token_auth_if_token_available(False)
    try:
        local = {"ENABLE_RAY_CLUSTER": False} if job and _is_for_this_machine(address) else {}
        with _without_uv_upload(), _changed(vars(ray_constants), local):
            ray.init(address=address, **job, **options)
    except Exception as error:  # grpc's, Ray's and bare ones
        raise not_joined(address, error) from error


def _is_for_this_machine(address: str) -> bool:
    """Whether a Ray listens on loopback alone, as our own do; Ray would ask the network's address.

    Args:
        address: `auto` or `host:port`.
    """
    from ray._private import ray_constants, services

    with _changed(vars(ray_constants), {"ENABLE_RAY_CLUSTER": False}):
        found = services.canonicalize_bootstrap_address(address) or ""
    host, _, port = found.rpartition(":")
    if host not in ("127.0.0.1", "localhost"):
        return False
    try:
        socket.create_connection((services.get_node_ip_address(), int(port)), timeout=1).close()
    except OSError:
        return True
    return False


def _job_config() -> Any:
    from ray.job_config import JobConfig

    class OwnPathOnly(JobConfig):  # type: ignore[misc]
        """Sends workers neither the folder of the command nor that of its script."""

        def _get_proto_job_config(self) -> Any:
            self._py_driver_sys_path.clear()
            return super()._get_proto_job_config()

    return OwnPathOnly()


@contextlib.contextmanager
def _without_uv_upload() -> Iterator[None]:
    """Under `uv run` Ray sends the current folder to all workers; leave that to whoever asks."""
    from ray._private import ray_constants

    job = json.loads(os.environ.get(_JOB_CONFIG) or "{}")
    submitted = "working_dir" in (job.get("runtime_env") or {})
    wanted = submitted or _UV_SWITCH in os.environ
    enabled = ray_constants.RAY_ENABLE_UV_RUN_RUNTIME_ENV and wanted
    with _changed(vars(ray_constants), {_UV_SWITCH: enabled}):
        yield


@contextlib.contextmanager
def _changed(names: MutableMapping[str, Any], changes: Mapping[str, Any]) -> Iterator[None]:
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


def _safe_python_path() -> str | None:
    """Return PYTHONPATH without empty entries, as `$UNSET:/x` has: they mean the current folder."""
    entries = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return os.pathsep.join(entry for entry in entries if entry) or None


def _session_folder() -> Path:
    """Return a folder in which Ray can keep its sockets and logs: the user's where it is fit."""
    named = next((name for name in ("RAY_TMPDIR", "TMPDIR") if os.environ.get(name)), None)
    places = [os.environ[named]] if named else []
    problems: list[str] = []
    for place in [*places, "/tmp", "/var/tmp"]:  # noqa: S108 - as Ray does
        folder = Path(place).absolute() / "ray"
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
    length = len(os.fsencode(folder / _SOCKET))
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
    return ConfigError(message, where="--address", got=f"{address} ({said})", hint=hint)


def _not_started(error: Exception, folder: Path) -> ExpoError:
    said = " ".join(str(error).split()) or type(error).__name__
    return WorkError(
        "a local Ray did not start",
        got=f"{type(error).__name__}: {said}",
        hint=f"its logs in {folder}/session_latest/logs say more; is there memory and space left?",
    )
