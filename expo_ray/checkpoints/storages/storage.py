"""Where the files of a checkpoint lie: a protocol of ranged reads, and what an address says."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol, Self

WORK_FOLDER = ".expo_ray"
RECORD_NAME = "expo_ray.json"
# An adapter and the base it belongs to, as one address: ADAPTER#base=BASE.
BASE_MARK = "#base="
# A checkpoint of FP8 blocks, read as float32.
DEQUANTIZED_MARK = "#dequantized"
MAX_SMALL_FILE_BYTES = 512 * 1024 * 1024
MAX_DEPTH = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class FileFacts:
    """What tells one version of a file from another without reading it."""

    name: str
    """Path inside the checkpoint folder."""
    num_bytes: int
    version_kind: str
    """mtime, etag or commit."""
    version: str
    """mtime: seconds since 1970 with nine decimals."""
    leads_to: str | None = field(default=None, compare=False)
    """Of a symbolic link that leaves the folder: the file that it stands for."""


class RangeReader(Protocol):
    """One open file."""

    facts: FileFacts

    def read_into(self, offset_bytes: int, buffer: memoryview) -> None:
        """Fill the whole buffer from an absolute offset.

        Raises:
            EOFError: The file ends before the buffer is full.
            OSError: The read failed.
        """

    def refresh(self) -> FileFacts:
        """Return the facts as they are now."""
        ...

    def close(self) -> None:
        """Release the file."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc: object) -> None: ...


class Storage(Protocol):
    """One checkpoint folder, local or remote."""

    uri: str

    def list_files(self) -> dict[str, FileFacts]:
        """Return the facts of every regular file, by name, sorted."""
        ...

    def read_bytes(self, name: str) -> bytes:
        """Return the content of a small file.

        Raises:
            CheckpointError: The file is missing or cannot be read.
        """
        ...

    def open(self, name: str) -> RangeReader:
        """Open a file for ranged reads.

        Raises:
            CheckpointError: The file is missing or cannot be read.
        """
        ...


def split_address(uri: str) -> tuple[str, str]:
    """Return the adapter and its base, or the place itself and an empty text."""
    address, _, base = uri.removesuffix(DEQUANTIZED_MARK).partition(BASE_MARK)
    return address, base


def hidden_or_deep(name: str) -> bool:
    """Tell whether a file inside a checkpoint is left out of listings."""
    parts = name.split("/")
    return len(parts) > MAX_DEPTH + 1 or any(part.startswith(".") for part in parts)
