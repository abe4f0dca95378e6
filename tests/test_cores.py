"""Cores are those of this process: its affinity, and its group's share of time."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from expo_ray import cores


@pytest.mark.parametrize(
    ("quota", "expected"),
    [("max 100000", None), ("100000 100000", 1), ("50000 100000", 1), ("6400000 100000", None)],
)
def test_a_share_of_time_is_no_core(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, quota: str, expected: int | None
) -> None:
    (tmp_path / "cpu.max").write_text(quota)
    monkeypatch.setattr(cores, "_QUOTA", tmp_path / "cpu.max")
    assert cores.num_cores() == (expected or len(os.sched_getaffinity(0)))


def test_without_a_group_the_affinity_counts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(cores, "_QUOTA", tmp_path / "none")
    assert cores.num_cores() == len(os.sched_getaffinity(0))
