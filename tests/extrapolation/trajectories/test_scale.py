"""Many and large checkpoints: planned from headers, and in memory that does not grow with them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from expo_ray.extrapolation import extrapolate_trajectory
from expo_ray.extrapolation.shards.tasks import TASK_MEMORY_BYTES
from tests.extrapolation.synthetic import write
from tests.stand_ins import LAYOUTS, write_stand_in


def linked(folder: Path, sources: list[Path], num_checkpoints: int) -> Path:
    """Write checkpoints whose files are those of a few, without room on the disk."""
    for number in range(1, num_checkpoints + 1):
        place = folder / f"checkpoint-{number}"
        place.mkdir(parents=True)
        for file in sources[number % len(sources)].iterdir():
            os.link(file, place / file.name)
    return folder


def test_fifty_checkpoints_of_70b_are_planned(tmp_path: Path) -> None:
    layout = LAYOUTS["tulu-2-70b"]
    source = write_stand_in(tmp_path / "source", layout)
    run = linked(tmp_path / "run", [source], 50)
    cluster = {"nodes": 16, "node_bandwidth": "2GB", "dry_run": True}
    result = extrapolate_trajectory(run, tmp_path / "out", fit="rank1", at_step=75, **cluster)
    plan = result.plan
    model_bytes = 2 * plan["num_parameters"]
    assert plan["num_parameters"] / 1e9 == pytest.approx(layout.num_parameters, rel=0.005)
    assert plan["bytes_in"] == 2 * 50 * model_bytes  # the Gram matrices, then the weights
    assert plan["bytes_out"] == pytest.approx(model_bytes, rel=0.001)
    assert plan["task_memory_bytes"] == TASK_MEMORY_BYTES
    bound = (plan["bytes_in"] + plan["bytes_out"]) / (16 * 2e9)
    assert bound <= plan["estimate"]["seconds"] < 1.1 * bound
    assert plan["estimate"]["node_hours"] == pytest.approx(
        16 * plan["estimate"]["seconds"] / 3600, abs=0.01
    )
    assert not (tmp_path / "out").exists()


MEASURED = """
import json, sys
import torch
from expo_ray.extrapolation.shards.attempts import attempt_shard
from expo_ray.extrapolation.trajectories import job
from expo_ray.extrapolation.arithmetic import transforms
import expo_ray.extrapolation.writing
from tests.peak_memory import peak_bytes

torch.zeros(8).to(torch.bfloat16).float().add_(1)
before = peak_bytes()
result = job.extrapolate_trajectory(
    sys.argv[1], sys.argv[2], fit="line", alpha=[0.5, 1], address="inline"
)
print(json.dumps({"added": peak_bytes() - before, "read": result.bytes_read}))
"""


@pytest.mark.slow
def test_memory_grows_with_neither_checkpoints_nor_tensors(tmp_path: Path) -> None:
    """Of the pass that writes; the one for Gram matrices has a test of its own."""
    random = np.random.default_rng(0)
    num_rows = 2048
    sources = []
    for number in range(3):
        values = torch.from_numpy(random.normal(size=(num_rows, 4096)).astype(np.float32))
        sources.append(
            write(tmp_path / f"source-{number}", {"model.layers.0.w": values.bfloat16()})
        )
    added = {}
    for num_checkpoints in (6, 100):
        run = linked(tmp_path / f"run-{num_checkpoints}", sources, num_checkpoints)
        out = tmp_path / f"out-{num_checkpoints}"
        done = subprocess.run(
            [sys.executable, "-c", MEASURED, str(run), str(out)],
            check=True,
            capture_output=True,
            text=True,
        )
        found = json.loads(done.stdout.splitlines()[-1])
        assert found["read"] == num_checkpoints * 2 * num_rows * 4096
        added[num_checkpoints] = found["added"]
    assert added[100] < TASK_MEMORY_BYTES, added
