"""Who says nothing of an address gets what is done sooner; who says something gets that."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from expo_ray.cluster import INLINE, LOCAL
from expo_ray.extrapolation.arithmetic.transforms import parse_transforms
from expo_ray.extrapolation.nodes import fanout, place
from expo_ray.extrapolation.nodes.fanout import place_of
from expo_ray.extrapolation.nodes.place import LOCAL_RAY_BYTES, num_threads_here
from expo_ray.extrapolation.planning.plan import build_plan
from expo_ray.extrapolation.shards.tasks import WRITE, ShardTask, shard_task

DEFAULT = """
import sys
from expo_ray.extrapolation import extrapolate, verify

extrapolate(*sys.argv[1:4], alpha=0.3)
assert verify(sys.argv[3]).problems == ()
assert "ray" not in sys.modules
"""


@pytest.fixture(autouse=True)
def nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def test_small_work_starts_no_ray(pico_pair: tuple[Path, Path], tmp_path: Path) -> None:
    command = [sys.executable, "-c", DEFAULT, *map(str, pico_pair), str(tmp_path / "out")]
    subprocess.run(
        command, check=True, env={k: v for k, v in os.environ.items() if k[:4] != "RAY_"}
    )


def task(pair: tuple[Path, Path], num_bytes: int, **how: Any) -> ShardTask:
    """A task that reads and writes so much, by its word."""
    plan = build_plan(*pair)
    shard = SimpleNamespace(**vars(plan.shards[0]), input_bytes=num_bytes, data_bytes=0)
    return replace(shard_task(plan, plan.shards[0], WRITE, ()), shard=shard, **how)


@pytest.mark.parametrize(
    ("num_bytes", "cores", "how", "expected"),
    [
        (LOCAL_RAY_BYTES, 4, {}, LOCAL),
        (LOCAL_RAY_BYTES, 64, {}, LOCAL),
        (LOCAL_RAY_BYTES - 1, 64, {}, INLINE),
        (1000 * LOCAL_RAY_BYTES, 3, {}, INLINE),
        (1, 2, {"transforms": parse_transforms(["magnitude:keep=0.2"])}, LOCAL),
        (1, 2, {"aligned_uri": "s3://bucket/dpo"}, LOCAL),
        (1, 2, {"initial_uri": "hf://owner/sft@main"}, LOCAL),
    ],
)
def test_what_workers_do_sooner_starts_a_local_ray(
    monkeypatch: pytest.MonkeyPatch,
    pico_pair: tuple[Path, Path],
    num_bytes: int,
    cores: int,
    how: dict[str, Any],
    expected: str,
) -> None:
    monkeypatch.setattr(place, "num_cores", lambda: cores)
    monkeypatch.setattr(fanout, "is_connected", lambda: False)
    tasks = [task(pico_pair, num_bytes, **how)]
    assert place_of(None, tasks) == expected
    for asked in (LOCAL, INLINE, "host:6379"):
        assert place_of(asked, tasks) == asked


def test_what_is_said_or_connected_is_taken(
    monkeypatch: pytest.MonkeyPatch, pico_pair: tuple[Path, Path], ray_cluster: str
) -> None:
    assert ray.is_initialized()
    assert place_of(None, [task(pico_pair, 1)]) == LOCAL  # that is: the connection that stands
    monkeypatch.setenv("RAY_ADDRESS", ray_cluster)
    assert place_of(None, [task(pico_pair, 1)]) == ray_cluster


@pytest.mark.parametrize(
    ("num_gib", "words"),
    [(3, "3.0 GiB are read and written in this process, on 6 cores"), (99, "by a local Ray")],
)
def test_the_choice_is_told(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    pico_pair: tuple[Path, Path],
    num_gib: int,
    words: str,
) -> None:
    monkeypatch.setattr(fanout, "is_connected", lambda: False)
    monkeypatch.setattr(place, "num_cores", lambda: 6)
    # Commands in this process may have made the messages of the package their own.
    place.logger.addHandler(caplog.handler)
    try:
        with caplog.at_level(logging.INFO, logger=place.logger.name):
            place_of(None, [task(pico_pair, num_gib << 30)])
    finally:
        place.logger.removeHandler(caplog.handler)
    assert words in caplog.text
    assert [num_threads_here(n) for n in (2, 8)] == [6, 8]
