"""The pipeline as a submitted job, on a real head node with its job server."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from tests.workflow.test_run import write_recipe

ROOT = Path(__file__).resolve().parents[2]
RAY = Path(sys.executable).with_name("ray")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def head(tmp_path: Path) -> Iterator[dict[str, str]]:
    """A head node of its own in a process group that is ended with it."""
    port, dashboard = free_port(), free_port()
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
        f"--ray-client-server-port={free_port()}",
        f"--dashboard-agent-listen-port={free_port()}",
    ]
    log = (tmp_path / "head.log").open("w")
    process = subprocess.Popen(
        command, env=environment, start_new_session=True, stdout=log, stderr=subprocess.STDOUT
    )
    try:
        yield {**environment, "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}"}
    finally:
        family = [
            *psutil.Process(process.pid).children(recursive=True),
            psutil.Process(process.pid),
        ]
        for member in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
        process.wait(timeout=30)
        log.close()


@pytest.mark.ray
@pytest.mark.timeout(300)
def test_the_pipeline_runs_as_a_submitted_job(
    head: dict[str, str], tmp_path: Path, pico_pair: tuple[Path, Path], pico_reward_model: Path
) -> None:
    url = head["RAY_API_SERVER_ADDRESS"]
    for _ in range(120):
        try:
            if httpx.get(f"{url}/api/version", timeout=2).status_code == 200:
                break
        except httpx.HTTPError:
            pass
        time.sleep(0.5)
    recipe = write_recipe(tmp_path, pico_pair, pico_reward_model, loadtest=None)
    submit = [
        str(RAY),
        "job",
        "submit",
        "--working-dir",
        str(ROOT / "pipelines"),
        "--",
        sys.executable,
        "run.py",
        str(recipe),
    ]
    result = subprocess.run(submit, env=head, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]
    selection = json.loads((tmp_path / "run" / "selection.json").read_text())
    assert selection["num_tuning"] + selection["num_heldout"] == 8
    assert (tmp_path / "run" / "report.html").exists()

    relative = [*submit, "--set", "output=somewhere"]
    refused = subprocess.run(relative, env=head, capture_output=True, text=True)
    assert refused.returncode != 0
    assert "absolute path that all nodes share" in refused.stdout
