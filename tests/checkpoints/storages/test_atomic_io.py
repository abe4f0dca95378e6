from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from expo_ray.checkpoints import atomic_write_bytes, atomic_write_json, atomic_write_text


def test_content_is_replaced_and_nothing_is_left_behind(tmp_path: Path) -> None:
    target = tmp_path / "x.json"
    atomic_write_bytes(target, b"one")
    atomic_write_text(target, "zwei \u00e4")
    assert target.read_text(encoding="utf-8") == "zwei \u00e4"
    atomic_write_json(target, {"a": [1, 2.5]})
    assert json.loads(target.read_text()) == {"a": [1, 2.5]}
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_failure_keeps_the_old_content(tmp_path: Path) -> None:
    target = tmp_path / "x.json"
    atomic_write_json(target, {"a": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        atomic_write_json(target, {"a": float("nan")})
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="folder"):
        atomic_write_bytes(tmp_path / "folder", b"x")
    assert json.loads(target.read_text()) == {"a": 1}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder", "x.json"]


def test_other_users_may_read_as_the_mask_allows(tmp_path: Path) -> None:
    mask = os.umask(0o027)
    try:
        atomic_write_bytes(tmp_path / "x", b"")
    finally:
        os.umask(mask)
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o640
