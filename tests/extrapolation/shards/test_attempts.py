"""Attempts at a shard: which failures are tried again, and how."""

from __future__ import annotations

import errno
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from expo_ray.checkpoints.storages import retries
from expo_ray.checkpoints.storages.retries import is_passing, retry_io
from expo_ray.errors import ShardError
from expo_ray.extrapolation import extrapolate
from expo_ray.extrapolation.nodes import batches, fanout
from expo_ray.extrapolation.planning.plan import OutputShard
from expo_ray.extrapolation.shards import shard_files
from expo_ray.extrapolation.shards.tasks import BUFFER_BUDGET_BYTES, MIN_CHUNK_BYTES, ShardTask
from tests.extrapolation.synthetic import file_digests, noise, write

Pair = tuple[Path, Path]


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "FIRST_DELAY_SECONDS", 0.001)


class Failing:
    """Fails a number of times with an error, then works."""

    def __init__(self, error: Exception, times: int) -> None:
        self.error, self.times, self.calls = error, times, 0

    def __call__(self) -> str:
        self.calls += 1
        if self.calls <= self.times:
            raise self.error
        return "done"


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        (OSError(errno.EIO, "i/o"), True),
        (OSError(errno.ESTALE, "stale"), True),
        (ConnectionResetError("peer"), True),
        (TimeoutError("slow"), True),
        (OSError("AWS Error SLOW_DOWN during GetObject operation"), True),
        (OSError("AWS Error ACCESS_DENIED during GetObject operation"), False),
        (FileNotFoundError(errno.ENOENT, "no"), False),
        (PermissionError(errno.EACCES, "no"), False),
        (OSError(errno.ENOSPC, "full"), False),
        (ShardError("wrong"), False),
        (ValueError("wrong"), False),
    ],
)
def test_only_named_errors_are_tried_again(error: Exception, passes: bool) -> None:
    assert is_passing(error) is passes
    call = Failing(error, times=2)
    if passes:
        assert retry_io(call, what="test") == "done"
        assert call.calls == 3
    else:
        with pytest.raises(type(error)):
            retry_io(call, what="test")
        assert call.calls == 1


def test_attempts_are_bounded() -> None:
    call = Failing(OSError(errno.EIO, "i/o"), times=100)
    with pytest.raises(OSError, match="i/o"):
        retry_io(call, what="test", attempts=4)
    assert call.calls == 4


def test_a_write_that_fails_now_and_then_gives_the_same_bytes(
    pico_pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"alpha": 0.3, "max_shard_size": "20KB", "address": "inline"}
    extrapolate(*pico_pair, tmp_path / "whole", **options)
    num_writes = 0
    real = os.pwrite

    def flaky(descriptor: int, data: memoryview, offset: int) -> int:
        nonlocal num_writes
        num_writes += 1
        if num_writes in (40, 90):
            raise OSError(errno.EIO, "the server hiccuped")
        return real(descriptor, data[: len(data) // 2 or 1], offset)

    monkeypatch.setattr(shard_files.os, "pwrite", flaky)
    extrapolate(*pico_pair, tmp_path / "out", **options)
    assert num_writes > 90
    assert file_digests(tmp_path / "out") == file_digests(tmp_path / "whole")


def test_a_batch_without_memory_gets_smaller_and_a_lost_one_starts_again() -> None:
    from ray.exceptions import OutOfMemoryError, RaySystemError, WorkerCrashedError

    task = ShardTask(
        mode="write",
        shard=OutputShard(name="model.safetensors", tensors=()),
        initial_uri="i",
        aligned_uri="a",
        initial_files={},
        aligned_files={},
        outputs=(),
    )
    batch = batches.Batch((0,), (task,))
    lost = batch
    for _ in range(batches.MAX_RETRIES):
        lost = fanout.next_attempt(lost, WorkerCrashedError())
        assert lost.tasks == batch.tasks
    with pytest.raises(WorkerCrashedError):
        fanout.next_attempt(lost, WorkerCrashedError())
    with pytest.raises(RaySystemError):
        fanout.next_attempt(batch, RaySystemError("other"))
    sizes = []
    with pytest.raises(ShardError, match="not enough memory"):
        while True:
            sizes.append(batch.tasks[0].chunk_bytes)
            batch = fanout.next_attempt(batch, OutOfMemoryError("killed"))
    assert sizes[0] == task.chunk_bytes
    assert sizes[-1] == MIN_CHUNK_BYTES
    assert all(2 * after <= before for before, after in itertools.pairwise(sizes))
    assert batch.tasks[0].num_threads == 1
    assert batch.num_out_of_memory == len(sizes) - 1 < 6


SCRIPT = """
import json, logging, re, resource, sys, threading
from pathlib import Path
import torch
threading.stack_size(256 * 1024)
logging.basicConfig(level=logging.WARNING)
from expo_ray.extrapolation import extrapolate
import expo_ray.extrapolation.job
import transformers, huggingface_hub.repocard
alphas = [0.05 * i for i in range(1, 17)]
extrapolate(*sys.argv[1:3], sys.argv[3] + "/warm", alpha=[0.9, 1.9], address="inline")
size = int(re.search(r"VmSize:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
limit = size + int(sys.argv[4])
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
extrapolate(*sys.argv[1:3], sys.argv[3] + "/out", alpha=alphas, address="inline")
"""


@pytest.mark.slow
def test_too_little_memory_is_met_with_smaller_chunks(tmp_path: Path) -> None:
    before = {f"w{i}": noise((2000, 1000), torch.bfloat16, i) for i in range(2)}
    after = {name: t + t / 64 for name, t in before.items()}
    pair = write(tmp_path / "initial", before), write(tmp_path / "aligned", after)
    limit = BUFFER_BUDGET_BYTES - (8 << 20)
    command = [sys.executable, "-c", SCRIPT, *map(str, pair), str(tmp_path), str(limit)]
    # The threshold gives the first run's buffers back, which would serve the second one else.
    settings = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": str(128 << 10)}
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **settings}
    done = subprocess.run(command, capture_output=True, text=True, timeout=170, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "out of memory: chunks of" in done.stderr
    record = json.loads((tmp_path / "out" / "alpha-0.8" / "expo_ray.json").read_text())
    extrapolate(*pair, tmp_path / "free", alpha=0.8, address="inline")
    other = json.loads((tmp_path / "free" / "expo_ray.json").read_text())
    assert record["weights_digest"] == other["weights_digest"]
