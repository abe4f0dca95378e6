"""Outputs that lie on a disk: refused before any work where they cannot be written."""

from __future__ import annotations

import os
from pathlib import Path

from expo_ray.errors import ConfigError, argument

_OUTPUT = argument("output")
_EXPECTED = "a local path, on a cluster one that all nodes share"


def require_local(path: str | Path, *, where: str) -> Path:
    """Return a local path; an address in an object store would become a folder called `s3:`.

    Args:
        path: What was asked for.
        where: The setting that named it.

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


def require_writable_file(path: str | Path, *, where: str = _OUTPUT) -> Path:
    """Return where a file can be written.

    Args:
        path: The file; folders above it may be missing.
        where: The setting that named it.

    Raises:
        ConfigError: It is a URI or a folder, lies below a file, or may not be written.
    """
    file = require_local(path, where=where)
    if file.is_dir():
        raise ConfigError("the output is a folder", where=where, got=path, expected="a file")
    _require_writable_parent(file, path, where)
    return file


def require_writable_folder(path: str | Path, *, where: str = _OUTPUT) -> Path:
    """Return where a folder can be written.

    Args:
        path: The folder; it and folders above it may be missing.
        where: The setting that named it.

    Raises:
        ConfigError: It is a URI or a file, lies below a file, or may not be written.
    """
    folder = require_local(path, where=where)
    if folder.exists() and not folder.is_dir():
        raise ConfigError("the output is a file", where=where, got=path, expected="a folder")
    _require_writable_parent(folder / "any", path, where)
    return folder


def refuse_links(folder: Path) -> None:
    """Let a folder pass in which files are read and written, perhaps one that came from elsewhere.

    Raises:
        ConfigError: Something in it is a link to a folder, or leads out of it.
    """
    top = folder.resolve()
    for root, folders, names in os.walk(folder):
        for path in (Path(root, name) for name in sorted((*folders, *names))):
            if not path.is_symlink():
                continue
            if path.name in folders or not path.resolve().is_relative_to(top):
                raise ConfigError(
                    "nothing is read or written through a link that leaves the folder",
                    where=path,
                    got=f"a link to {path.resolve()}",
                    hint="put the file or folder itself in its place; to use another disk, give an "
                    "output folder there",
                )


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
