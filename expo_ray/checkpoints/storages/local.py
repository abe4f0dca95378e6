"""A checkpoint folder on a local or shared file system.

Files are read with `pread`: a memory map of a file that is cut short on a network file system kills
the process without an exception, and it is slow there.
"""

from __future__ import annotations

import os
import stat
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Self

from expo_ray.checkpoints.storages.retries import retry_io
from expo_ray.checkpoints.storages.small_files import read_small_file
from expo_ray.checkpoints.storages.storage import MAX_DEPTH, FileFacts
from expo_ray.errors import CheckpointError


class LocalReader:
    """Ranged reads of one local file; safe to share between threads."""

    def __init__(self, path: Path, name: str) -> None:
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._path = path
        self.facts = _facts(name, os.fstat(self._descriptor))

    def read_into(self, offset_bytes: int, buffer: memoryview) -> None:
        """Fill the whole buffer from an absolute offset."""
        while len(buffer):
            read = partial(os.preadv, self._descriptor, [buffer], offset_bytes)
            num_bytes = retry_io(read, what=f"read {self._path}")
            if num_bytes == 0:
                raise EOFError(f"{self._path} ends before byte {offset_bytes + len(buffer)}")
            buffer = buffer[num_bytes:]
            offset_bytes += num_bytes

    def refresh(self) -> FileFacts:
        """Return the facts as they are now."""
        return _facts(self.facts.name, os.fstat(self._descriptor))

    def close(self) -> None:
        """Release the file."""
        os.close(self._descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class LocalStorage:
    """A checkpoint folder on a local or shared file system."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.uri = str(folder)

    def list_files(self) -> dict[str, FileFacts]:
        """Return the facts of every regular file, by name, sorted; hidden ones are left out.

        Raises:
            CheckpointError: The folder cannot be read.
        """
        try:
            return self._list_files()
        except OSError as error:
            raise unreadable(self._folder, error) from error

    def _list_files(self) -> dict[str, FileFacts]:
        def check(error: OSError) -> None:
            # Below may be what is not ours to read; a closed checkpoint is not an empty one.
            if error.filename == str(self._folder):
                raise error

        found: dict[str, FileFacts] = {}
        top = self._folder.resolve()
        for root, folders, names in os.walk(self._folder, onerror=check):
            # A dump of training runs may sit inside: two levels hold all that a checkpoint has.
            depth = len(Path(root).relative_to(self._folder).parts)
            folders[:] = [f for f in folders if not f.startswith(".") and depth < MAX_DEPTH]
            for name in names:
                path = Path(root) / name
                relative = path.relative_to(self._folder).as_posix()
                if name.startswith(".") or not path.exists():
                    continue
                status = path.stat()
                if stat.S_ISREG(status.st_mode):
                    facts = _facts(relative, status)
                    if path.is_symlink():
                        facts = replace(facts, leads_to=_outside(path, top))
                    found[relative] = facts
        return dict(sorted(found.items()))

    def read_bytes(self, name: str) -> bytes:
        """Return the content of a small file."""
        path = self._folder / name
        with self.open(name) as reader:
            try:
                return read_small_file(reader, where=path)
            except (EOFError, OSError) as error:
                raise unreadable(path, error) from error

    def open(self, name: str) -> LocalReader:
        """Open a file for ranged reads."""
        path = self._folder / name
        try:
            return LocalReader(path, name)
        except OSError as error:
            raise unreadable(path, error) from error


def _outside(link: Path, top: Path) -> str | None:
    """Return where a link leads, None inside the checkpoint or among the Hub cache's own files."""
    target = link.resolve()
    is_blob = top.parent.name == "snapshots" and target.parent == top.parent.parent / "blobs"
    # Hidden files are no part of a checkpoint: `.git/config` may hold a token. Kubernetes keeps the
    # files of a volume in a folder `..2026_...` beside the links to them.
    is_inside = target.is_relative_to(top) and not any(
        part.startswith(".") and not part.startswith("..") for part in target.relative_to(top).parts
    )
    return None if is_blob or is_inside else str(target)


def _facts(name: str, status: os.stat_result) -> FileFacts:
    seconds, nanoseconds = divmod(status.st_mtime_ns, 10**9)
    return FileFacts(
        name=name,
        num_bytes=status.st_size,
        version_kind="mtime",
        version=f"{seconds}.{nanoseconds:09d}",
    )


def unreadable(path: Path, error: OSError | EOFError) -> CheckpointError:
    """Return what a failed look at a local path means to the user."""
    missing = isinstance(error, FileNotFoundError)
    closed = isinstance(error, PermissionError)
    rights = "check the rights on it and on the folders above" if closed else None
    return CheckpointError(
        "the file is missing" if missing else "the file cannot be read",
        where=path,
        got=None if missing else str(getattr(error, "strerror", None) or error),
        hint="fetch the checkpoint again" if missing else rights,
    )
