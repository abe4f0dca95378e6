"""A head and two workers in network namespaces; one worker's link is cut while it works.

Arguments: INITIAL, ALIGNED, OUTPUT, PREFIX (of the namespaces). Prints one JSON object. Needs root.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import ray

from expo_ray.extrapolation import extrapolate
from expo_ray.extrapolation.shards import shard_files

NUM_HOSTS = 3
RAY = Path(sys.executable).with_name("ray")


def sh(command: str) -> None:
    subprocess.run(command, shell=True, check=True, capture_output=True)


@contextlib.contextmanager
def hosts(prefix: str) -> Iterator[list[str]]:
    """Namespaces on one bridge; yields their names. Number n has the address 10.99.7.n."""
    bridge = f"{prefix}br"
    names = [f"{prefix}{n}" for n in range(1, NUM_HOSTS + 1)]
    try:
        sh(f"ip link add {bridge} type bridge && ip link set {bridge} up")
        for number, name in enumerate(names, 1):
            sh(
                f"ip netns add {name} && ip link add {name} type veth peer name eth0 netns {name} "
                f"&& ip link set {name} master {bridge} up && ip -n {name} link set lo up "
                f"&& ip -n {name} addr add 10.99.7.{number}/24 dev eth0 "
                f"&& ip -n {name} link set eth0 up"
            )
        yield names
    finally:
        for name in names:
            subprocess.run(
                f"ip link del {name}; ip netns del {name}", shell=True, capture_output=True
            )
        subprocess.run(f"ip link del {bridge}", shell=True, capture_output=True)


@contextlib.contextmanager
def started(names: list[str], folder: Path) -> Iterator[None]:
    """One Ray over all hosts, the first its head; ended with all its processes."""
    nodes = []
    try:
        for number, name in enumerate(names, 1):
            where = "--head --port=6390 --include-dashboard=false"
            where = where if number == 1 else "--address=10.99.7.1:6390"
            command = f"ip netns exec {name} {RAY} start {where} --block --num-cpus=1 "
            command += f"--node-ip-address=10.99.7.{number} --disable-usage-stats "
            command += f"--object-store-memory=80000000 --temp-dir={folder}/{number}"
            with (folder / f"{number}.log").open("w") as log:
                nodes.append(
                    subprocess.Popen(
                        command.split(), start_new_session=True, stdout=log, stderr=log
                    )
                )
            time.sleep(8 if number == 1 else 0)
        yield
    finally:
        for node in nodes:
            node.terminate()  # a blocked start ends its processes with it
        for node in nodes:
            node.wait(timeout=60)


def slow_down(seconds: float) -> None:
    """Let every shard take so long, in the workers."""
    begin = shard_files.ShardWriter.begin

    def slowly(self: shard_files.ShardWriter, tensors: object) -> None:
        time.sleep(seconds)
        begin(self, tensors)  # type: ignore[arg-type]

    shard_files.ShardWriter.begin = slowly  # type: ignore[assignment,method-assign]


def drive(initial: str, aligned: str, output: str, cut: str) -> None:
    """The driver, inside the first namespace: extrapolate, and cut a worker off meanwhile."""
    times: dict[str, float] = {}
    began = time.monotonic()
    hook = {"worker_process_setup_hook": "tests.extrapolation.separate_hosts.setup"}
    ray.init(address="10.99.7.1:6390", log_to_driver=False, runtime_env=hook)
    while len([n for n in ray.nodes() if n["Alive"]]) < NUM_HOSTS:
        time.sleep(0.5)
        assert time.monotonic() < began + 90, ray.nodes()
    started_writing = time.monotonic()

    def break_off() -> None:
        work = Path(output) / ".expo_ray"
        while len({p.name.split(".")[0] for p in work.glob("model-*.tmp")}) < NUM_HOSTS:
            time.sleep(0.1)
            assert time.monotonic() < started_writing + 120
        sys.stderr.write("CUT\n")
        sys.stderr.flush()
        times["cut"] = time.monotonic()
        while all(node["Alive"] for node in ray.nodes()):
            time.sleep(0.5)
        times["listed"] = time.monotonic()

    watcher = threading.Thread(target=break_off, daemon=True)
    watcher.start()
    try:
        result = extrapolate(initial, aligned, output, alpha=0.3, max_shard_size="140MB")
        ended = time.monotonic()
        status = result.outputs[0].status
    finally:
        ray.shutdown()
    found = {
        "status": status,
        "listed_after": times.get("listed", 0) - times["cut"],
        "ended_after": ended - times["cut"],
        "shutdown_seconds": time.monotonic() - ended,
    }
    sys.stdout.write(json.dumps(found) + "\n")


def setup() -> None:
    """Runs in every worker before its first task."""
    slow_down(15)


def main(initial: str, aligned: str, output: str, prefix: str) -> None:
    folder = Path(f"/tmp/{prefix}ray")
    folder.mkdir()
    environment = os.environ | {"RAY_AUTH_MODE": "disabled", "RAY_memory_monitor_refresh_ms": "0"}
    os.environ.update(environment)
    with hosts(prefix) as names, started(names, folder):
        command = ["ip", "netns", "exec", names[0], sys.executable, "-m", __spec__.name, "drive"]
        driver = subprocess.Popen(
            [*command, initial, aligned, output, names[-1]],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert driver.stderr is not None
        log = ""
        for line in driver.stderr:
            log += line
            if line == "CUT\n":
                sh(f"ip link set {names[-1]} down")
        out = driver.communicate(timeout=60)[0]
    assert driver.returncode == 0, log
    sys.stdout.write(out)


if __name__ == "__main__":
    if sys.argv[1] == "drive":
        drive(*sys.argv[2:])
    else:
        main(*sys.argv[1:])
