"""Connecting to Ray, in one place. Imports ray lazily so that nothing pays for it needlessly."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from expo_ray import haproxy, ray_internals
from expo_ray.errors import ConfigError, WorkError, argument
from expo_ray.proxies import spare_this_machine
from expo_ray.ray_start import join, not_joined, start_local

LOCAL = "local"
INLINE = "inline"
NODE_TIMEOUT_SECONDS = 120
PROBE_SECONDS = 5
POLL_NODES_SECONDS = 5.0
NOTES = "expo-ray-tasks"
_CLIENT_PORT = 10001

logger = logging.getLogger(__name__)


class _Session:
    """The Ray that `ray_session` has started in this process, while there is one."""

    is_for_handles = False


def resolve_address(address: str | None) -> str:
    """Return the address a command uses: the flag, else `RAY_ADDRESS`, else `local`."""
    return address or os.environ.get("RAY_ADDRESS") or LOCAL


def is_asked_for(address: str | None) -> bool:
    """Tell whether somebody said where the work is done, by the flag or by `RAY_ADDRESS`."""
    return bool(address or os.environ.get("RAY_ADDRESS"))


def is_connected() -> bool:
    """Tell whether this process has a Ray already; imports none to find out."""
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


def require_cluster(address: str | None) -> None:
    """Check that Ray can be had at an address; starts none and writes nothing.

    Args:
        address: As for `ray_session`.

    Raises:
        ConfigError: It is `inline`, or a host and port where nobody listens.
    """
    resolved = resolve_address(address)
    if resolved == INLINE:
        raise ConfigError(
            "this command needs Ray",
            where=argument("address"),
            got=INLINE,
            expected="local, auto or the address of a cluster",
            hint=f"leave {argument('address')} out to start a local Ray",
        )
    is_client = resolved.startswith("ray://")
    if not is_client and ("://" in resolved or ":" not in resolved):
        return  # Ray itself finds it, or says why not
    try:
        parts = urlsplit(resolved if is_client else f"ray://{resolved}")
        port = parts.port or (_CLIENT_PORT if is_client else 0)
        # Ray goes on trying for minutes where nobody answers.
        socket.create_connection((parts.hostname or "", port), timeout=PROBE_SECONDS).close()
    except (OSError, ValueError) as error:
        raise not_joined(resolved, error) from error


@contextlib.contextmanager
def ray_session(
    address: str | None, *, num_cpus: int | None = None, for_handles: bool = False
) -> Iterator[None]:
    """Connect to a Ray cluster, or start a local one, for the length of a `with` block.

    Where this process is connected already, the existing connection is used and left as it was,
    so that stages of one run share one Ray.

    Args:
        address: `local` for a Ray of its own, `auto` or `host:port` or `ray://...` for a cluster;
            None means `RAY_ADDRESS` where set, else `local`.
        num_cpus: Logical CPUs of a local Ray; None takes what the machine has. Ignored for an
            existing cluster.
        for_handles: Replicas are reached by handles alone, and nothing comes after them: a Ray of
            its own then starts no HTTP proxy, and takes replicas down by its own end.

    Raises:
        ConfigError: The cluster cannot be reached or refuses, no folder is fit for a local Ray,
            or the address is `inline`.
        WorkError: A local Ray did not start.
    """
    resolved = resolve_address(address)
    if resolved == INLINE:
        require_cluster(resolved)  # refuses it
    import ray

    if ray.is_initialized():
        yield
        return
    require_cluster(resolved)
    if resolved == LOCAL:
        # Serve's proxy reaches replicas by gRPC, which takes the proxies of the environment.
        spare_this_machine(ray.util.get_node_ip_address())
    # Named, not imported: serving stands on this module.
    ray_internals.set_defaults(proxy_callback="expo_ray.serving.header_limit.limit_headers")
    sigterm_handler = signal.getsignal(signal.SIGTERM)
    # Its warnings at start-up are about defaults of future releases.
    options = {"logging_level": logging.ERROR, "log_to_driver": False}
    front = None
    if resolved == LOCAL:
        front = start_local(num_cpus, options, with_haproxy=not for_handles)
        _Session.is_for_handles = for_handles
    else:
        join(resolved, options)
    # Ray's own handler prints a native stack and aborts the process three seconds later, before
    # replicas and temporary files are cleaned up.
    if sigterm_handler is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, sigterm_handler)
    try:
        yield
    except Exception as error:
        if "://" in resolved and not ray.is_initialized():  # Ray's client gave up
            raise WorkError(
                "the connection to the Ray cluster was lost",
                where=resolved,
                got=error,
                hint="see that the cluster is up, then run the same command again",
            ) from error
        raise
    finally:
        _Session.is_for_handles = False
        ray.shutdown()
        haproxy.remove(front)


def is_for_handles() -> bool:
    """Whether this Ray was started by `ray_session` for replicas that handles alone reach."""
    return _Session.is_for_handles


def get_within(seconds: float, ref: Any, *, what: str) -> Any:
    """Return what references stand for, as `ray.get` does, but never wait without end.

    Args:
        seconds: How long it may take.
        ref: One reference or a list of them.
        what: What is waited for, in words, for the error.

    Raises:
        WorkError: It did not come in time.
        RayError: What the task, the actor or the cluster raised.
    """
    import ray
    from ray.exceptions import GetTimeoutError

    try:
        return ray.get(ref, timeout=seconds)
    except GetTimeoutError as error:
        raise WorkError(
            "the Ray cluster did not answer in time",
            where=what,
            got="no answer",
            expected=f"within {seconds:g} s",
            hint="see with `ray status` that its nodes are up and have memory left, then run the "
            "same command again",
        ) from error


@dataclass(frozen=True, slots=True)
class NoAnswer:
    """Why a node did not answer: no fault of the request."""

    reason: str


def run_on_nodes(function: Callable[[Any, str], Any], argument: Any) -> dict[str, Any]:
    """Call a function once on every node that can take work, all at the same time.

    Args:
        function: Takes the argument and a name of the node that is fit for a file.
        argument: Sent to all.

    Returns:
        By node what it returned, in words what it raised, or a `NoAnswer`. Nodes that Ray lost
        meanwhile are left out.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    remote = ray.remote(function)
    refs = {}
    for node in worker_nodes():
        name = f"{node['NodeManagerHostname']} {node['NodeManagerAddress']} {node['NodeID'][:8]}"
        here = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        options = {"num_cpus": 0, "max_retries": 1, "scheduling_strategy": here}
        refs[name, node["NodeID"]] = remote.options(**options).remote(argument, file_name_of(name))
    found: dict[str, Any] = {}
    deadline = time.monotonic() + NODE_TIMEOUT_SECONDS
    for (name, node_id), ref in refs.items():
        answer = _answer_of_node(ref, node_id, deadline)
        if answer is None:
            logger.warning("%s is gone: it is left out", name)
        else:
            found[name] = answer[0]
    return found


def _answer_of_node(ref: Any, node_id: str, deadline: float) -> tuple[Any] | None:
    """Return what a task on a node gave, see `run_on_nodes`; None where the node is lost."""
    import ray
    from ray.exceptions import GetTimeoutError, RayError, RayTaskError, RuntimeEnvSetupError

    reason = f"no answer within {NODE_TIMEOUT_SECONDS} s"
    while True:
        try:
            # Not in one piece: for a task on a host that was cut off Ray waits longer than we do.
            left = min(POLL_NODES_SECONDS, max(1.0, deadline - time.monotonic()))
            return (ray.get(ref, timeout=left),)
        except (RayTaskError, RuntimeEnvSetupError) as error:
            return (_last_line(error),)
        except GetTimeoutError:
            pass
        except RayError as error:
            # Ray may list a node as dead only some time after its processes are.
            reason = _last_line(error)
            time.sleep(1)
        if node_id in dead_nodes():
            return None
        if time.monotonic() > deadline:
            ray.cancel(ref, force=True)
            return (NoAnswer(reason),)


def _last_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[-1]}"


def dead_nodes() -> set[str]:
    """Return the ids of the nodes that the cluster has lost."""
    import ray

    return {str(node["NodeID"]) for node in ray.nodes() if not node["Alive"]}


class NodeWatch:
    """Finds tasks whose node is lost: Ray lists a host that was cut off as dead after a minute.

    The tasks there it holds for running until its connection to them gives up, minutes later.
    So every task leaves a note where it runs.
    """

    def __init__(self) -> None:
        self._dead = dead_nodes()
        self._notes: dict[Any, str] = {}
        self._next_look = 0.0

    def submit(self, remote: Any, function: Callable[..., Any], *arguments: Any) -> Any:
        """Start `function` as a task of `remote`, which is `run_noted`; returns its reference."""
        note = f"task-{secrets.token_hex(8)}"
        ref = remote.remote(note, function, *arguments)
        self._notes[ref] = note
        return ref

    def forget(self, ref: Any) -> None:
        """Watch a task no more."""
        ray_internals.forget(self._notes.pop(ref), namespace=NOTES)

    def close(self) -> None:
        """Watch nothing more."""
        from ray.exceptions import RayError

        with contextlib.suppress(RayError, RuntimeError):  # the cluster may be what is lost
            for ref in list(self._notes):
                self.forget(ref)

    def lost(self) -> dict[Any, bool]:
        """Return the tasks to start again, watched no more, and whether they had begun.

        Those that had not may have been on their way to a lost node, and are cancelled.
        """
        if time.monotonic() < self._next_look:
            return {}
        self._next_look = time.monotonic() + POLL_NODES_SECONDS
        lost = dead_nodes() - self._dead
        self._dead |= lost
        found: dict[Any, bool] = {}
        for ref, note in list(self._notes.items()) if lost else ():
            place = ray_internals.recall(note, namespace=NOTES)
            if place is None or place in lost:
                found[ref] = place is not None
                self.forget(ref)
        cancel_unfinished([ref for ref, has_begun in found.items() if not has_begun])
        return found


def run_noted(note: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Leave a note where this task runs, then call a function; see `NodeWatch`."""
    import ray

    ray_internals.remember(note, ray.get_runtime_context().get_node_id(), namespace=NOTES)
    return function(*arguments)


def cancel_unfinished(refs: Sequence[Any], *, force: bool = False) -> None:
    """Cancel tasks that still run.

    Ray itself aborts now and then when a task is cancelled in the moment in which it ends, so that
    finished ones are left alone.

    Args:
        refs: What the tasks return.
        force: Kill their processes.
    """
    import ray

    if refs:
        for ref in ray.wait(list(refs), num_returns=len(refs), timeout=0)[1]:
            ray.cancel(ref, force=force)


def worker_nodes() -> list[dict[str, Any]]:
    """Return the nodes of the connected cluster that can take work, in a fixed order."""
    import ray

    nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    return sorted(nodes, key=lambda node: str(node["NodeID"]))


def may_grow() -> bool:
    """Whether an autoscaler may add nodes to the connected cluster, as far as that can be known."""
    from ray.exceptions import RayError

    # What other versions lack is taken for a fixed cluster.
    unknown = (AttributeError, KeyError, TypeError, ValueError, RuntimeError, RayError)
    with contextlib.suppress(*unknown):
        counts = ray_internals.node_group_limits()
        if -1 in counts or sum(counts) > len(worker_nodes()):
            return True
    with contextlib.suppress(*unknown):
        # A monitor that only watches names every node after itself.
        types = ray_internals.autoscaled_node_types()
        return any(not name.startswith("node_") for name in types)
    return False


def is_one_node() -> bool:
    """Whether the only node is the one of this process, which has read the inputs already."""
    import ray

    if ray_internals.is_client():
        return False
    here = ray.get_runtime_context().get_node_id()
    return [node["NodeID"] for node in worker_nodes()] == [here]


def file_name_of(node: str) -> str:
    """Return what of the name of a node, as `run_on_nodes` gives it, is fit for a file."""
    return node.rpartition(" ")[2]
