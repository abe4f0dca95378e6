"""Drivers killed at random points, inputs that shrink, disks that fill up. Real processes."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from expo_ray.errors import ConfigError, ShardError
from expo_ray.extrapolation import extrapolate, verify
from expo_ray.extrapolation.outputs import targets
from tests.extrapolation.drivers import OPTIONS, start
from tests.extrapolation.synthetic import file_digests, noise, write
from tests.extrapolation.test_faults import synthetic_pair

Pair = tuple[Path, Path]


@pytest.mark.parametrize("num_kills", [5, pytest.param(50, marks=pytest.mark.slow)])
def test_a_driver_killed_at_random_points_ends_with_the_same_bytes(
    tmp_path: Path, num_kills: int
) -> None:
    pair = synthetic_pair(tmp_path)
    extrapolate(*pair, tmp_path / "whole", **OPTIONS)
    generator = random.Random(num_kills)
    out = tmp_path / "out"
    receipts = out / "alpha-0.3" / ".expo_ray" / "receipts"
    num_killed = 0
    for _ in range(num_kills):
        process = start(pair, out)
        # The point is drawn from progress and from time: inside a shard, between two, in assembly.
        target = len(list(receipts.glob("*.json"))) + generator.randrange(4)
        while process.is_running() and len(list(receipts.glob("*.json"))) < target:
            time.sleep(0.001)
        time.sleep(generator.random() * 0.03)
        process.kill()
        num_killed += process.wait() == -9
        if (out / "alpha-1" / "expo_ray.json").exists():
            shutil.rmtree(out)
    assert num_killed >= num_kills // 2
    extrapolate(*pair, out, **OPTIONS)
    for name in ("alpha-0.3", "alpha-1"):
        assert file_digests(out / name) == file_digests(tmp_path / "whole" / name)
        verify(out / name, address="inline")
        assert not (out / name / ".expo_ray").exists()


def test_an_input_cut_short_while_it_is_read_stops_the_run(tmp_path: Path) -> None:
    pair = synthetic_pair(tmp_path)
    out, kept = tmp_path / "out", tmp_path / "kept.safetensors"
    weights = pair[1] / "model.safetensors"
    shutil.copy2(weights, kept)
    process = start(pair, out)
    receipts = out / "alpha-0.3" / ".expo_ray" / "receipts"
    while process.is_running() and len(list(receipts.glob("*.json"))) < 2:
        time.sleep(0.002)
    os.truncate(weights, weights.stat().st_size // 2)
    assert process.wait() == 1
    assert not list(out.rglob("expo_ray.json"))
    shutil.copy2(kept, weights)
    # The file is back with its size and time: the finished shards still count.
    result = extrapolate(*pair, out, **OPTIONS)
    assert result.outputs[0].num_shards_resumed >= 2
    extrapolate(*pair, tmp_path / "whole", **OPTIONS)
    for name in ("alpha-0.3", "alpha-1"):
        assert file_digests(out / name) == file_digests(tmp_path / "whole" / name)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 6 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("mounting a small disk is not permitted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_disk_that_fills_up_leaves_a_result_that_continues(
    tmp_path: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {f"w{i}": noise((1000, 500), torch.bfloat16, i) for i in range(5)}
    after = {name: t + t / 64 for name, t in before.items()}
    pair = write(tmp_path / "initial", before), write(tmp_path / "aligned", after)
    options = {"alpha": 0.3, "max_shard_size": "1MB", "address": "inline"}
    out = small_disk / "out"
    with pytest.raises(ConfigError, match="not enough room"):
        extrapolate(*pair, out, **options)
    assert not out.exists()
    # The room is there when the run starts, and somebody else takes it.
    monkeypatch.setattr(targets, "SPARE_BYTES", 0)
    foreign = small_disk / "foreign"
    foreign.write_bytes(b"")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(targets.shutil, "disk_usage", lambda path: _Usage(free=1 << 40))
        foreign.write_bytes(bytes(3 << 20))
        with pytest.raises(ShardError, match="disk is full") as caught:
            extrapolate(*pair, out, **options)
    assert "free some space" in str(caught.value.hint)
    assert not (out / "config.json").exists()
    assert not list((out / ".expo_ray").glob("*.tmp"))
    foreign.unlink()
    result = extrapolate(*pair, out, **options)
    assert 0 < result.outputs[0].num_shards_resumed < 5
    verify(out, address="inline")


class _Usage:
    def __init__(self, *, free: int) -> None:
        self.free = free
