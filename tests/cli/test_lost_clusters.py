"""Commands on a cluster that goes away under them."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.extrapolation.synthetic import noise, write
from tests.head_node import head_node, kill_family

EXPO_RAY = Path(sys.executable).with_name("expo-ray")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def pair_of(folder: Path, num_tensors: int) -> list[str]:
    before = {f"layers.{i}.w": noise((1000, 500), torch.bfloat16, i) for i in range(num_tensors)}
    after = {name: 2 * tensor for name, tensor in before.items()}
    return [str(write(folder / "initial", before)), str(write(folder / "aligned", after))]


def test_a_head_that_is_lost_under_a_command_is_told(tmp_path: Path) -> None:
    with head_node(tmp_path) as environment:
        out = tmp_path / "out"
        command = [str(EXPO_RAY), "extrapolate", *pair_of(tmp_path, 400), str(out), "--json"]
        command += [
            "--alpha",
            "0.3",
            "--max-shard-size",
            "1MB",
            "--address",
            environment["HEAD_ADDRESS"],
        ]
        with subprocess.Popen(
            command,
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
    error = json.loads(line)["error"]
    assert error["message"].startswith("the Ray cluster was lost"), stderr
    assert "run the same command again to continue" in error["hint"]
