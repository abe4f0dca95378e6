"""Outputs that lie on a disk: refused before any work where they cannot be written."""

from __future__ import annotations

import os
from pathlib import Path

from expo_ray.errors import ConfigError

_EXPECTED = "a local path, on a cluster one that all nodes share"


def require_local(path: str | Path, *, where: str) -> Path:
    """Return a local path; an address in an object store would become a folder called `s3:`.

    Args:
        path: What was asked for.
        where: The flag, argument or recipe key that named it.

    Raises:
        ConfigError: It is a URI.
    """
    text = str(path)
    # pathlib has folded the slashes of a URI that went through it.
    scheme, separator, _ = text.partition(":/")
    if separator and scheme.isalnum() and len(scheme) > 1:
        raise ConfigError(
            "this lies on a file system, not in an object store or on the Hub",
            where=where,
            got=text,
            expected=_EXPECTED,
            hint="mount the bucket, or copy the file",
        )
    return Path(path)


def require_writable_file(path: str | Path, *, where: str = "--output") -> Path:
    """Return where a file can be written.

    Args:
        path: The file; folders above it may be missing.
        where: The flag or recipe key that named it.

    Raises:
        ConfigError: It is a URI or a folder, lies below a file, or may not be written.
    """
    file = require_local(path, where=where)
    if file.is_dir():
        raise ConfigError("the output is a folder", where=where, got=path, expected="a file")
    _require_writable_parent(file, path, where)
    return file


def require_writable_folder(path: str | Path, *, where: str = "--output") -> Path:
    """Return where a folder can be written.

    Args:
        path: The folder; it and folders above it may be missing.
        where: The flag or recipe key that named it.

    Raises:
        ConfigError: It is a URI or a file, lies below a file, or may not be written.
    """
    folder = require_local(path, where=where)
    if folder.exists() and not folder.is_dir():
        raise ConfigError("the output is a file", where=where, got=path, expected="a folder")
    _require_writable_parent(folder / "any", path, where)
    return folder


def _require_writable_parent(target: Path, asked: str | Path, where: str) -> None:
    parent = next(folder for folder in target.absolute().parents if folder.exists())
    if not parent.is_dir():
        raise ConfigError(
            "the output lies below a file", where=where, got=asked, expected=_EXPECTED
        )
    if not os.access(parent, os.W_OK | os.X_OK):
        raise ConfigError(
            "the output cannot be written",
            where=where,
            got=asked,
            hint=f"check the rights on {parent}",
        )
