"""Connecting to Ray, in one place. Imports ray lazily so that nothing pays for it needlessly."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Iterator

from expo_ray.errors import ConfigError

LOCAL = "local"
INLINE = "inline"


def resolve_address(address: str | None) -> str:
    """Return the address a command uses: the flag, else `RAY_ADDRESS`, else `local`."""
    return address or os.environ.get("RAY_ADDRESS") or LOCAL


@contextlib.contextmanager
def ray_session(address: str | None, *, num_cpus: int | None = None) -> Iterator[None]:
    """Connect to a Ray cluster, or start a local one, for the length of a `with` block.

    Where this process is connected already, the existing connection is used and left as it was,
    so that stages of one run share one Ray.

    Args:
        address: `local` for a Ray of its own, `auto` or `host:port` or `ray://...` for a cluster;
            None means `RAY_ADDRESS` where set, else `local`.
        num_cpus: Logical CPUs of a local Ray; None takes what the machine has. Ignored for an
            existing cluster.

    Raises:
        ConfigError: The cluster cannot be reached, or the address is `inline`.
    """
    resolved = resolve_address(address)
    if resolved == INLINE:
        raise ConfigError(
            "this command needs Ray",
            where="--address",
            got=INLINE,
            expected="local, auto or the address of a cluster",
            hint="leave --address out to start a local Ray",
        )
    import ray

    if ray.is_initialized():
        yield
        return
    # Ray warns about a future default on every start; the new behaviour is the one we want.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    sigterm_handler = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(
            address=resolved,
            num_cpus=num_cpus if resolved == LOCAL else None,
            # Its warnings at start-up are about defaults of future releases.
            logging_level=logging.ERROR,
            log_to_driver=False,
            include_dashboard=False if resolved == LOCAL else None,
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ConfigError(
            "cannot connect to the Ray cluster",
            where="--address",
            got=f"{resolved} ({error})",
            hint="start one with `ray start --head`, or leave --address out for a local Ray",
        ) from error
    # Ray's own handler prints a native stack and aborts the process three seconds later, before
    # replicas and temporary files are cleaned up.
    if sigterm_handler is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, sigterm_handler)
    try:
        yield
    finally:
        ray.shutdown()
