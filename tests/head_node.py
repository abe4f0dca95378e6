"""A head node of its own, with the dashboard that takes jobs and Serve configurations."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil

RAY = Path(sys.executable).with_name("ray")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def head_node(folder: Path) -> Iterator[dict[str, str]]:
    """Run a head node in a process group that is ended with it; yields its environment.

    `RAY_API_SERVER_ADDRESS` there is the dashboard, which answers; `HEAD_PID`, `HEAD_ADDRESS` and
    `CLIENT_PORT` are for tests alone.
    """
    port, dashboard, client = free_port(), free_port(), free_port()
    environment = {
        **os.environ,
        "RAY_AUTH_MODE": "disabled",  # a throw-away cluster on the loopback address
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "PATH": f"{RAY.parent}{os.pathsep}{os.environ['PATH']}",
    }
    environment.pop("RAY_ADDRESS", None)
    command = [
        str(RAY),
        "start",
        "--head",
        "--block",
        "--node-ip-address=127.0.0.1",
        f"--port={port}",
        f"--dashboard-port={dashboard}",
        "--num-cpus=4",
        "--include-dashboard=true",
        "--disable-usage-stats",
        f"--ray-client-server-port={client}",
        f"--dashboard-agent-listen-port={free_port()}",
    ]
    log = (folder / "head.log").open("w")
    process = subprocess.Popen(
        command, env=environment, start_new_session=True, stdout=log, stderr=subprocess.STDOUT
    )
    try:
        url = f"http://127.0.0.1:{dashboard}"
        _wait_for(f"{url}/api/version")
        yield {
            **environment,
            "RAY_API_SERVER_ADDRESS": url,
            "HEAD_PID": str(process.pid),
            "HEAD_ADDRESS": f"127.0.0.1:{port}",
            "CLIENT_PORT": str(client),
        }
    finally:
        kill_family(process.pid)
        process.wait(timeout=30)
        log.close()


def kill_family(pid: int) -> None:
    """Kill a process and all that it started."""
    for member in [*psutil.Process(pid).children(recursive=True), psutil.Process(pid)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()


def _wait_for(url: str) -> None:
    for _ in range(120):
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(url, timeout=2).status_code == 200:
                return
        time.sleep(0.5)
    raise AssertionError(f"{url} does not answer")
