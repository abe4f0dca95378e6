"""A lock on a local folder: a file that is gone once its owner is done."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

# A killed command holds its locks until its memory is given back: a moment after whoever started
# it has been told of its end, and may start it again.
_LINGER_SECONDS = 2.0
_NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)


@contextlib.contextmanager
def owned_lock(path: Path, *, wait: bool = False) -> Iterator[None]:
    """Own a lock file for the length of a `with` block; its folder is made, the file removed.

    Where the file system has no locks, everybody gets it.

    Args:
        path: The file.
        wait: Whether to wait for another owner, and not only for one that is going.

    Raises:
        BlockingIOError: Another process owns it.
    """
    descriptor = _open(path, fcntl.LOCK_EX) if wait else _open_soon(path)
    try:
        yield
    finally:
        # Whoever waits for it sees that it is gone and makes another, which is not ours to remove.
        with contextlib.suppress(FileNotFoundError):
            if os.fstat(descriptor).st_ino == path.stat().st_ino:
                path.unlink()
        os.close(descriptor)


def _open_soon(path: Path) -> int:
    deadline = time.monotonic() + _LINGER_SECONDS
    while True:
        try:
            return _open(path, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def _open(path: Path, operation: int) -> int:
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, operation)
            # The owner before us may have removed the file: then we hold a lock on nothing.
            if os.fstat(descriptor).st_ino == path.stat().st_ino:
                return descriptor
        except FileNotFoundError:
            pass
        except OSError as error:
            if error.errno in _NO_LOCKS:
                return descriptor
            os.close(descriptor)
            raise
        os.close(descriptor)
