"""Several nodes on this machine, one of them in a mount namespace of its own. Run as a script.

Arguments: a scenario, INITIAL, ALIGNED, OUTPUT. Prints one JSON object. It needs a Ray of its own.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import ray
from ray._common.utils import get_system_memory
from ray._private.utils import get_used_memory
from ray.cluster_utils import Cluster

from expo_ray.cluster import run_on_nodes
from expo_ray.errors import ExpoError
from expo_ray.extrapolation import extrapolate

GIB = 1 << 30


@contextlib.contextmanager
def second_node(address: str, hidden: str) -> Iterator[None]:
    """A node that sees an empty folder where others see `hidden`."""
    port = address.rpartition(":")[2]
    start = (
        f"mount -t tmpfs tmpfs '{hidden}' && exec {Path(sys.executable).parent}/ray start "
        f"--address=127.0.0.1:{port} --num-cpus=1 --block --disable-usage-stats"
    )
    process = subprocess.Popen(
        ["unshare", "-m", "bash", "-c", start],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 60
        while sum(node["Alive"] for node in ray.nodes()) < 2:
            assert process.poll() is None, "the second node did not start"
            assert time.monotonic() < deadline, "the second node did not join"
            time.sleep(0.1)
        yield
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=20)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def hidden_path(
    pair: list[str], output: str, hidden: str, *, overwrite: bool = False
) -> dict[str, object]:
    """Extrapolate while one node does not see a path."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    ray.init(address=cluster.address, log_to_driver=False)
    try:
        with second_node(cluster.address, hidden):
            try:
                options = {"max_shard_size": "20KB", "overwrite": overwrite}
                extrapolate(*pair, output, alpha=0.3, **options)
            except ExpoError as error:
                return {**error.as_dict(), "exit_code": error.exit_code}
            return {}
    finally:
        ray.shutdown()
        cluster.shutdown()


def lost_node(pair: list[str], output: str, *, is_graceful: bool) -> dict[str, object]:
    """Take away a node that is working: told to stop, or its raylet killed without a word."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    second = cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, log_to_driver=False)
    receipts = Path(output) / ".expo_ray" / "receipts"
    killed: list[int] = []

    def kill() -> None:
        while len(list(receipts.glob("*.json"))) < 2:
            time.sleep(0.005)
        killed.append(len(list(receipts.glob("*.json"))))
        cluster.remove_node(second, allow_graceful=is_graceful)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    try:
        result = extrapolate(*pair, output, alpha=0.3, max_shard_size="2MB")
        thread.join(timeout=30)
        # The run may be done before the cluster notices that a raylet is gone.
        deadline = time.monotonic() + 60
        while (alive := sum(n["Alive"] for n in ray.nodes())) > 1 and time.monotonic() < deadline:
            time.sleep(0.1)
        return {"status": result.outputs[0].status, "killed_at": killed, "alive": alive}
    finally:
        ray.shutdown()
        cluster.shutdown()


def _wait_there(folder: str, name: str) -> str:
    Path(folder, name).touch()
    time.sleep(20)
    return "here"


def node_gone_in_check(folder: str) -> dict[str, object]:
    """Kill a node while every node is asked something."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    second = cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, log_to_driver=False)

    def kill() -> None:
        while len(list(Path(folder).iterdir())) < 2:
            time.sleep(0.05)
        cluster.remove_node(second, allow_graceful=False)

    threading.Thread(target=kill, daemon=True).start()
    try:
        began = time.monotonic()
        found = run_on_nodes(_wait_there, folder)
        return {"answers": list(found.values()), "seconds": time.monotonic() - began}
    finally:
        ray.shutdown()
        cluster.shutdown()


class _Release(logging.Handler):
    """Frees memory as soon as a task is tried again for want of it."""

    def __init__(self, held: list[bytearray]) -> None:
        super().__init__()
        self.held, self.messages = held, list[str]()

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())
        self.held.clear()


def short_of_memory(pair: list[str], output: str, *, is_lasting: bool) -> dict[str, object]:
    """Fill memory above the threshold of Ray's monitor, for the first attempt or for good."""
    used, total = get_used_memory(), get_system_memory()
    # Room for the workers, and for what others on this machine take meanwhile: the threshold is
    # that of the machine, and with 3 GiB of room a neighbour made the shortage last for good.
    room = int(0.4 * (total - used))
    assert room > 3 * GIB, "this machine has too little memory left for the test"
    threshold = (used + room) / total
    limits = {"memory_usage_threshold": threshold, "memory_monitor_refresh_ms": 100}
    options = {"log_to_driver": False, "include_dashboard": False, "_system_config": limits}
    ray.init("local", num_cpus=2, **options)
    held = [bytearray(b"x") * (room + 2 * GIB)]
    release = _Release([] if is_lasting else held)
    for module in ("nodes.batches", "shards.less_memory"):
        logging.getLogger(f"expo_ray.extrapolation.{module}").addHandler(release)
    try:
        result = extrapolate(*pair, output, alpha=0.3, max_shard_size="100MB", address="local")
        return {"status": result.outputs[0].status, "messages": release.messages}
    except ExpoError as error:
        return {**error.as_dict(), "exit_code": error.exit_code, "messages": release.messages}
    finally:
        ray.shutdown()


if __name__ == "__main__":
    scenario, *arguments = sys.argv[1:]
    if scenario == "gone in the check":
        outcome = node_gone_in_check(arguments[0])
    elif scenario in ("hidden", "overwrite"):
        outcome = hidden_path(
            arguments[:2], arguments[2], arguments[3], overwrite=scenario == "overwrite"
        )
    elif scenario in ("short of memory", "without memory"):
        outcome = short_of_memory(
            arguments[:2], arguments[2], is_lasting=scenario == "without memory"
        )
    else:
        outcome = lost_node(arguments[:2], arguments[2], is_graceful=scenario == "removed")
    sys.stdout.write(json.dumps(outcome) + "\n")
