"""Files that appear whole or not at all: a temporary file beside the target, fsync, replace."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from collections.abc import Iterable
from pathlib import Path

from expo_ray.checkpoints.storages.remote_path import AnyPath, RemotePath


def atomic_write_bytes(path: str | AnyPath, data: bytes) -> None:
    """Write `data` so that a reader sees the old file or the new one, never a part.

    Args:
        path: The target; its folder must exist.
        data: The whole content.

    Raises:
        OSError: The folder is missing or cannot be written to; the target is untouched.
    """
    atomic_write_parts(path, (data,))


def atomic_write_parts(path: str | AnyPath, parts: Iterable[bytes]) -> None:
    """Write parts one after the other; see `atomic_write_bytes`.

    Args:
        path: The target; its folder must exist.
        parts: The content; what goes to a disk is never held whole.
    """
    if isinstance(path, RemotePath):
        # An object appears whole or not at all, and a request that failed is sent again.
        path.write_bytes(b"".join(parts))
        return
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(6)}.tmp")
    # Not tempfile: its files are private, and a checkpoint is read by other users of the disk.
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    fsync_folder(target.parent)


def atomic_write_text(path: str | AnyPath, data: str) -> None:
    """Write text as UTF-8; see `atomic_write_bytes`."""
    atomic_write_bytes(path, data.encode("utf-8"))


def atomic_write_json(path: str | AnyPath, data: object) -> None:
    """Write an object as indented JSON; NaN and infinity are refused.

    Raises:
        ValueError: A number is not finite, which JSON has no word for.
    """
    text = json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False)
    atomic_write_text(path, text + "\n")


def fsync_folder(folder: Path) -> None:
    """Make renames inside a folder survive a power cut, where the file system can."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with contextlib.suppress(OSError):  # some network file systems cannot sync a folder
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
