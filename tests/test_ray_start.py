"""Where a local Ray keeps its files, and what is told of one that cannot be had."""

from __future__ import annotations

import resource
import tempfile
from pathlib import Path

import pytest
from ray._private.utils import check_version_info

from expo_ray import ray_start
from expo_ray.errors import ConfigError

LONG = "/tmp/" + "a-long-name/" * 8


@pytest.mark.parametrize("name", ["RAY_TMPDIR", "TMPDIR"])
@pytest.mark.parametrize("place", [LONG, "/dev/null", "/proc"])
def test_a_folder_that_is_not_fit_is_passed_over_with_a_word(
    name: str,
    place: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv(name, place)
    assert ray_start._session_folder() == Path("/tmp/ray")
    assert place.rstrip("/") in caplog.text


def test_a_folder_that_is_fit_is_the_users(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        monkeypatch.setenv("RAY_TMPDIR", folder)
        assert ray_start._session_folder() == Path(folder) / "ray"
    assert not caplog.text


def test_without_any_space_the_cure_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", LONG)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 10, before[1]))
    try:
        with pytest.raises(ConfigError, match="no temporary folder is fit") as caught:
            ray_start.start_local(1, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.where == "RAY_TMPDIR"
    assert "too long for sockets" in str(caught.value.got)
    assert "/tmp/ray: File too large" in str(caught.value.got)
    assert "RAY_TMPDIR" in str(caught.value.hint)


def test_a_cluster_of_another_version_is_told_from_one_that_is_not_there() -> None:
    other = {"ray_version": "1.0.0", "python_version": "3.6.0"}
    with pytest.raises(RuntimeError) as said:
        check_version_info(other, "this process", raise_on_mismatch=True)
    error = ray_start.not_joined("head:6379", said.value)
    assert "another version" in error.message
    assert "1.0.0" in str(error.got)
