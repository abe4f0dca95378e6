"""Who says nothing of an address gets what is done sooner; who says something gets that."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import ray

from expo_ray.cluster import INLINE, LOCAL
from expo_ray.extrapolation.nodes import fanout, place
from expo_ray.extrapolation.nodes.fanout import place_of
from expo_ray.extrapolation.nodes.place import LOCAL_RAY_BYTES, num_threads_here

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


@pytest.mark.parametrize(
    ("num_bytes", "cores", "expected"),
    [
        (LOCAL_RAY_BYTES, 4, LOCAL),
        (LOCAL_RAY_BYTES, 64, LOCAL),
        (LOCAL_RAY_BYTES - 1, 64, INLINE),
        (1000 * LOCAL_RAY_BYTES, 3, INLINE),
    ],
)
def test_large_work_with_many_cores_starts_a_local_ray(
    monkeypatch: pytest.MonkeyPatch, num_bytes: int, cores: int, expected: str
) -> None:
    monkeypatch.setattr(place, "num_cores", lambda: cores)
    monkeypatch.setattr(fanout, "is_connected", lambda: False)
    assert place_of(None, num_bytes) == expected
    assert place_of(LOCAL, num_bytes) == LOCAL
    assert place_of(INLINE, num_bytes) == INLINE
    assert place_of("host:6379", num_bytes) == "host:6379"


def test_what_is_said_or_connected_is_taken(
    monkeypatch: pytest.MonkeyPatch, ray_cluster: str
) -> None:
    assert ray.is_initialized()
    assert place_of(None, 1) == LOCAL  # that is: the connection that stands
    monkeypatch.setenv("RAY_ADDRESS", ray_cluster)
    assert place_of(None, 1) == ray_cluster


def test_the_choice_is_told_and_all_cores_compute(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(fanout, "is_connected", lambda: False)
    monkeypatch.setattr(place, "num_cores", lambda: 6)
    with caplog.at_level(logging.INFO):
        assert place_of(None, 3 << 30) == INLINE
    assert "3.0 GiB are read in this process on 6 cores" in caplog.text
    assert [num_threads_here(n) for n in (2, 8)] == [6, 8]
