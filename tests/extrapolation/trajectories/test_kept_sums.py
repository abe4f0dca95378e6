"""A pass over a path that is killed goes on with what it had measured, to the same sums."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from expo_ray.checkpoints.storages.remote_path import RemotePath
from expo_ray.errors import RequestError
from expo_ray.extrapolation.nodes import fanout
from expo_ray.extrapolation.outputs.work_folder import MEASURED_FOLDER
from expo_ray.extrapolation.shards.tasks import ShardReport, ShardTask
from expo_ray.extrapolation.trajectories import gram
from expo_ray.extrapolation.trajectories.diagnosis_file import DIAGNOSIS_NAME
from expo_ray.extrapolation.trajectories.gram import measure_path_sums
from expo_ray.extrapolation.trajectories.job import extrapolate_trajectory
from expo_ray.extrapolation.trajectories.judgement import diagnose_trajectory
from expo_ray.extrapolation.trajectories.kept_sums import KeptSums
from expo_ray.extrapolation.trajectories.trajectory import open_trajectory
from tests.checkpoints.s3_server import BUCKET, objects
from tests.extrapolation.synthetic import file_digests, write
from tests.extrapolation.trajectories.test_gram import STEPS, tensors

NUM_TASKS = 3

_KILLED = """
import os, signal, sys
from expo_ray.extrapolation.nodes import fanout
from expo_ray.extrapolation.trajectories import gram
from expo_ray.extrapolation.trajectories.job import extrapolate_trajectory
from expo_ray.extrapolation.trajectories.judgement import diagnose_trajectory

gram._TASK_BYTES = gram._MIN_TENSOR_BYTES = 1
run, done = fanout._run_here, []

def run_or_die(*arguments):
    if len(done) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    done.append(arguments)
    return run(*arguments)

fanout._run_here = run_or_die
if sys.argv[3] == "diagnose":
    diagnose_trajectory(sys.argv[1], output=sys.argv[2], address="inline")
else:
    extrapolate_trajectory(sys.argv[1], sys.argv[2], fit="rank1", alpha=[0.5, 1], address="inline")
"""


@pytest.fixture
def training(tmp_path: Path) -> Path:
    for step in STEPS:
        write(tmp_path / "training" / f"checkpoint-{step}", tensors(step))
    return tmp_path / "training"


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Make a task of each tensor; return the names of those that are measured from here on."""
    monkeypatch.setattr(gram, "_TASK_BYTES", 1)
    monkeypatch.setattr(gram, "_MIN_TENSOR_BYTES", 1)
    found: list[str] = []
    run = fanout._run_here

    def noting(task: ShardTask, *rest: object) -> ShardReport:
        found.extend(pair.name for pair in task.shard.tensors)
        return run(task, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(fanout, "_run_here", noting)
    return found


def stop(training: Path, output: Path, work: str = "diagnose", kept: str = ".") -> None:
    """Measure in a process that is killed before its last task."""
    command = [sys.executable, "-c", _KILLED, str(training), str(output), work]
    done = subprocess.run(command, check=False, cwd=Path.cwd())
    assert done.returncode == -signal.SIGKILL
    assert len(list((output / kept / MEASURED_FOLDER).glob("*.npz"))) == NUM_TASKS - 1
    assert not (output / DIAGNOSIS_NAME).exists()


def test_a_killed_diagnosis_goes_on_where_it_stopped(
    training: Path, tmp_path: Path, measured: list[str]
) -> None:
    stop(training, tmp_path / "judged")
    found = diagnose_trajectory(training, output=tmp_path / "judged", address="inline")
    assert len(measured) == 1
    fresh = diagnose_trajectory(training, address="inline")
    assert len(measured) == 1 + NUM_TASKS
    assert json.dumps(found.as_dict()) == json.dumps(fresh.as_dict())
    assert [path.name for path in (tmp_path / "judged").iterdir()] == [DIAGNOSIS_NAME]


def test_a_killed_fit_by_tensor_goes_on_where_it_stopped(
    training: Path, tmp_path: Path, measured: list[str]
) -> None:
    """The first pass of `rank1`, at 70B the longer one: nothing of it is read twice."""
    asked: dict[str, Any] = {"fit": "rank1", "alpha": [0.5, 1], "address": "inline"}
    stop(training, tmp_path / "out", "extrapolate", "alpha-1/.expo_ray")
    again = extrapolate_trajectory(training, tmp_path / "out", **asked)
    num_written = len(tensors(0))
    assert len(measured) == 1 + num_written
    fresh = extrapolate_trajectory(training, tmp_path / "fresh", **asked)
    assert len(measured) == 1 + NUM_TASKS + 2 * num_written
    assert again.bytes_read < fresh.bytes_read
    for name in ("alpha-0.5", "alpha-1"):
        assert file_digests(tmp_path / "out" / name) == file_digests(tmp_path / "fresh" / name)
        assert not (tmp_path / "out" / name / ".expo_ray").exists()


def test_a_first_pass_that_failed_goes_on_too(
    training: Path, tmp_path: Path, measured: list[str]
) -> None:
    """A file that is away for a moment is a wrong request, which otherwise leaves nothing."""
    asked: dict[str, Any] = {"fit": "rank1", "alpha": 1, "address": "inline"}
    file = training / "checkpoint-250" / "model.safetensors"
    run = fanout._run_here

    def failing(*arguments: Any) -> ShardReport:
        if len(measured) == 2:
            file.rename(training / "away")
        return run(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fanout, "_run_here", failing)
        with pytest.raises(RequestError, match="missing"):
            extrapolate_trajectory(training, tmp_path / "out", **asked)
    (training / "away").rename(file)
    measured.clear()
    extrapolate_trajectory(training, tmp_path / "out", **asked)
    assert len(measured) == NUM_TASKS - 2 + len(tensors(0))


def test_sums_are_kept_in_a_bucket(training: Path, s3: str, measured: list[str]) -> None:
    trajectory = open_trajectory(training)
    kept = KeptSums(RemotePath(f"s3://{BUCKET}/kept"), trajectory)
    for _ in range(2):
        measure_path_sums(trajectory, address="inline", kept=kept)
    assert len(measured) == NUM_TASKS
    kept.remove()
    assert not objects(s3, "kept")


def test_kept_sums_are_those_that_were_measured(
    training: Path, tmp_path: Path, measured: list[str]
) -> None:
    trajectory = open_trajectory(training)
    kept = KeptSums(tmp_path, trajectory)
    first = measure_path_sums(trajectory, address="inline", kept=kept)
    second = measure_path_sums(trajectory, address="inline", kept=kept)
    assert len(measured) == NUM_TASKS
    assert list(first) == list(second)
    for name, sums in first.items():
        assert type(second[name].num_elements) is int
        for told, again in zip(sums.packed().values(), second[name].packed().values(), strict=True):
            np.testing.assert_array_equal(told, again)


def test_damaged_files_and_other_weights_are_measured_again(
    training: Path, tmp_path: Path, measured: list[str]
) -> None:
    stop(training, tmp_path / "judged")
    damaged, _ = (tmp_path / "judged" / MEASURED_FOLDER).glob("*.npz")
    damaged.write_bytes(damaged.read_bytes()[:-30])
    kept = KeptSums(tmp_path / "judged", open_trajectory(training))
    measure_path_sums(open_trajectory(training), address="inline", kept=kept)
    assert len(measured) == 2
    shutil.rmtree(training / "checkpoint-250")
    write(training / "checkpoint-250", tensors(251))
    changed = open_trajectory(training)
    kept = KeptSums(tmp_path / "judged", changed)
    measure_path_sums(changed, address="inline", kept=kept)
    assert len(measured) == 2 + NUM_TASKS
