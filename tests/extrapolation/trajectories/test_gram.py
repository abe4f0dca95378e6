"""The pass over all checkpoints against plain NumPy on loaded weights."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from expo_ray.errors import ShardError
from expo_ray.extrapolation.nodes.fanout import run_tasks
from expo_ray.extrapolation.planning.plan import Plan, lay_out
from expo_ray.extrapolation.shards import path_pass
from expo_ray.extrapolation.shards.path_pass import measure_paths
from expo_ray.extrapolation.shards.tasks import MEASURE_PATHS, ShardTask, shard_task
from expo_ray.extrapolation.trajectories.gram import measure_gram, measure_path_sums
from expo_ray.extrapolation.trajectories.trajectory import Trajectory, open_trajectory
from tests.extrapolation.synthetic import load, noise, write

STEPS = (0, 100, 250, 400, 900)


def tensors(step: int) -> dict[str, torch.Tensor]:
    return {
        "model.embed.weight": noise((300, 70), torch.float32, seed=step + 1),
        "model.layers.0.w": noise((64, 33), torch.bfloat16, seed=1)
        + noise((64, 33), torch.bfloat16, seed=step + 2, scale=0.1),
        "model.layers.1.w": noise((64, 33), torch.bfloat16, seed=7),
        "model.steps": torch.tensor([step]),
    }


def opened(folder: Path, **changed: dict[str, torch.Tensor]) -> Trajectory:
    for step in STEPS:
        write(folder / f"checkpoint-{step}", tensors(step) | changed.get(f"at_{step}", {}))
    return open_trajectory(folder)


@pytest.fixture(scope="module")
def trajectory(tmp_path_factory: pytest.TempPathFactory) -> Trajectory:
    return opened(tmp_path_factory.mktemp("path"))


def tasks_of(trajectory: Trajectory, **options: int) -> list[ShardTask]:
    paths = [pair for pair in trajectory.pair.tensors if pair.path]
    plan = Plan(
        pair=trajectory.pair,
        shards=lay_out(paths, 60_000),
        output_dtype="auto",
        max_shard_bytes=60_000,
        vocab_policy="refuse",
    )
    return [shard_task(plan, shard, MEASURE_PATHS, (), **options) for shard in plan.shards]


def test_each_tensor_has_the_gram_matrix_of_its_changes(trajectory: Trajectory) -> None:
    found = measure_gram(trajectory, address="inline")
    assert sorted(found) == ["model.embed.weight", "model.layers.0.w", "model.layers.1.w"]
    loaded = [load(Path(checkpoint.uri)) for checkpoint in trajectory.checkpoints]
    for name, gram in found.items():
        changes = np.stack([weights[name].double().numpy().ravel() for weights in loaded])
        changes -= changes[0]
        expected = changes @ changes.T
        np.testing.assert_allclose(gram, expected, rtol=0, atol=1e-7 * expected.max())
    assert not found["model.layers.1.w"].any()


def test_every_byte_is_read_once(trajectory: Trajectory) -> None:
    tasks = tasks_of(trajectory)
    done: list[float] = []
    reports, _ = run_tasks(tasks, address="inline", advance=done.append)
    expected = 5 * (300 * 70 * 4 + 2 * 64 * 33 * 2)
    assert len(tasks) > 1
    assert sum(report.bytes_read for report in reports) == expected
    assert sum(done) == sum(task.shard.input_bytes for task in tasks) == expected


def test_the_sums_do_not_depend_on_chunks_or_threads(
    trajectory: Trajectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = measure_path_sums(trajectory, address="inline")
    monkeypatch.setattr(path_pass, "MIN_CHUNK_BYTES", 4096)
    for task in tasks_of(trajectory, chunk_bytes=4096, num_threads=5):
        for name, table in measure_paths(task).statistics.items():
            sums = path_pass.PathSums.unpacked(table)
            np.testing.assert_allclose(sums.gram, whole[name].gram, rtol=1e-12, atol=1e-12)
            assert sums.num_moved.tolist() == whole[name].num_moved.tolist()
            assert sums.num_elements == whole[name].num_elements


def test_ray_finds_the_same(trajectory: Trajectory, ray_cluster: str) -> None:
    here = measure_gram(trajectory, address="inline")
    there = measure_gram(trajectory, address=ray_cluster)
    assert {n: g.tolist() for n, g in here.items()} == {n: g.tolist() for n, g in there.items()}


@pytest.mark.parametrize(
    ("step", "label"),
    [(0, "step 0"), (250, "step 250"), (900, "step 900")],
)
def test_a_checkpoint_that_is_not_finite_is_named(tmp_path: Path, step: int, label: str) -> None:
    bad = tensors(step)["model.layers.0.w"]
    bad[3, 4] = float("inf")
    trajectory = opened(tmp_path, **{f"at_{step}": {"model.layers.0.w": bad}})
    with pytest.raises(ShardError, match="not finite") as caught:
        measure_gram(trajectory, address="inline")
    assert label in str(caught.value.where)
    assert f"checkpoint-{step}" in str(caught.value.where)
    assert "model.layers.0.w" in str(caught.value.where)


def test_a_checkpoint_that_changes_meanwhile_is_refused(tmp_path: Path) -> None:
    trajectory = opened(tmp_path)
    write(tmp_path / "checkpoint-250", tensors(251))
    with pytest.raises(ShardError, match="a file of step 250 changed"):
        measure_gram(trajectory, address="inline")


_SCRIPT = """
import sys
from expo_ray.extrapolation.nodes.fanout import run_tasks
from expo_ray.extrapolation.shards import attempts
from expo_ray.extrapolation.trajectories.gram import measure_gram
from expo_ray.extrapolation.trajectories.trajectory import open_trajectory
from tests.peak_memory import peak_bytes

trajectory = open_trajectory(sys.argv[1])
before = peak_bytes()
gram = measure_gram(trajectory, address="inline")
assert next(iter(gram.values())).shape == (100, 100)
print(peak_bytes() - before)
"""


@pytest.mark.slow
def test_memory_at_100_checkpoints_stays_below_256_mib(tmp_path: Path) -> None:
    for step in range(100):
        folder = tmp_path / f"checkpoint-{step}"
        weights = torch.full((4096, 4096), 1 + step / 128, dtype=torch.bfloat16)
        write(folder, {"model.layers.0.w": weights})
    ran = subprocess.run(
        [sys.executable, "-c", _SCRIPT, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=600,
        check=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
    )
    assert int(ran.stdout) < 256 * 2**20
