"""Commands on a cluster that goes away under them."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.extrapolation.synthetic import noise, write
from tests.head_node import head_node, kill_family

EXPO_RAY = Path(sys.executable).with_name("expo-ray")
OPTIONS = ["--json", "--alpha", "0.3", "--max-shard-size", "1MB", "--address"]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def pair_of(folder: Path, num_tensors: int) -> list[str]:
    before = {f"layers.{i}.w": noise((1000, 500), torch.bfloat16, i) for i in range(num_tensors)}
    after = {name: 2 * tensor for name, tensor in before.items()}
    return [str(write(folder / "initial", before)), str(write(folder / "aligned", after))]


def error_without_head(
    arguments: list[str], out: Path, environment: dict[str, str]
) -> dict[str, Any]:
    """Kill the head under `extrapolate` when it has written some shards; return what it told."""
    with subprocess.Popen(
        [str(EXPO_RAY), "extrapolate", *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        while process.poll() is None and len(list(out.glob("*.safetensors"))) < 3:
            time.sleep(0.01)
        assert process.poll() is None, process.communicate()
        kill_family(int(environment["HEAD_PID"]))
        stdout, stderr = process.communicate(timeout=240)
    assert process.returncode == 1, stderr
    (line,) = stdout.splitlines()
    error: dict[str, Any] = json.loads(line)["error"]
    return error


def test_a_head_that_is_lost_under_a_command_is_told(tmp_path: Path) -> None:
    with head_node(tmp_path) as environment:
        out = tmp_path / "out"
        command = [*pair_of(tmp_path, 400), str(out), *OPTIONS, environment["HEAD_ADDRESS"]]
        error = error_without_head(command, out, environment)
    assert error["message"].startswith("the Ray cluster was lost"), error
    assert "run the same command again to continue" in error["hint"]


def wait_for_port(port: int) -> None:
    for _ in range(240):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.5)
    raise AssertionError(f"nobody listens on {port}")


def test_a_client_of_ray_works_and_is_told_that_its_connection_is_lost(tmp_path: Path) -> None:
    with head_node(tmp_path) as environment:
        address = f"ray://127.0.0.1:{environment['CLIENT_PORT']}"
        wait_for_port(int(environment["CLIENT_PORT"]))
        few, out = pair_of(tmp_path / "few", 2), tmp_path / "few" / "out"
        command = [str(EXPO_RAY), "extrapolate", *few, str(out), *OPTIONS, address]
        subprocess.run(command, env=environment, check=True)
        many, out = pair_of(tmp_path / "many", 400), tmp_path / "many" / "out"
        error = error_without_head([*many, str(out), *OPTIONS, address], out, environment)
    assert error["message"] == "the connection to the Ray cluster was lost"
