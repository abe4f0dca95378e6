"""A lock that leaves nothing behind, and never removes another owner's."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from pathlib import Path

import pytest

from expo_ray.checkpoints.storages.folder_lock import owned_lock


def test_one_owner_at_a_time_and_nothing_stays(tmp_path: Path) -> None:
    path = tmp_path / "new" / ".lock"
    with owned_lock(path):
        with pytest.raises(BlockingIOError), owned_lock(path):
            pass
        assert path.exists()
    assert list(path.parent.iterdir()) == []


def test_who_waits_gets_a_lock_that_holds(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    inside, release = threading.Event(), threading.Event()

    def wait() -> None:
        with owned_lock(path, wait=True):
            inside.set()
            release.wait(60)

    with owned_lock(path):
        other = threading.Thread(target=wait)
        other.start()
        assert not inside.wait(0.2)
    assert inside.wait(60)
    with pytest.raises(BlockingIOError), owned_lock(path):
        pass
    release.set()
    other.join()
    assert not path.exists()


def test_the_lock_of_a_later_owner_stays(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    # A finished run removes the folder around its lock; what comes there then is another's.
    with owned_lock(path):
        path.unlink()
        path.touch()
        later = path.stat().st_ino
    assert path.stat().st_ino == later


def test_an_owner_that_is_going_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    with ExitStack() as going:
        going.enter_context(owned_lock(path))
        timer = threading.Timer(0.3, going.pop_all().close)
        timer.start()
        with owned_lock(path):
            assert path.exists()
        timer.join()
    assert not path.exists()
