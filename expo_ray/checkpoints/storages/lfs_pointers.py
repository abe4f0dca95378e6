"""Git LFS pointers: the few lines that a clone without `git lfs pull` leaves in place of a file."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from expo_ray.checkpoints.storages.storage import FileFacts, RangeReader, Storage
from expo_ray.errors import CheckpointError

MAX_POINTER_BYTES = 1024
_START = b"version https://git-lfs.github.com/spec/"
_SIZE = re.compile(rb"^size (\d+)$", re.MULTILINE)


def refuse_pointer(data: bytes, *, where: object) -> None:
    """Let the content of a file pass that is none.

    Raises:
        CheckpointError: It is a pointer.
    """
    if len(data) > MAX_POINTER_BYTES or not data.startswith(_START):
        return
    size = _SIZE.search(data)
    raise CheckpointError(
        "the file is a Git LFS pointer: what it stands for was not downloaded",
        where=where,
        got=f"{len(data)} bytes that point to {size[1].decode() if size else 'the'} bytes",
        expected="the file itself",
        hint="run `git lfs pull` in the folder that was cloned, or fetch it with `hf download`",
    )


def refuse_pointer_file(reader: RangeReader, *, where: object) -> None:
    """Let an open file pass that is none.

    Raises:
        CheckpointError: It is a pointer.
        OSError: It cannot be read.
    """
    if len(_START) <= reader.facts.num_bytes <= MAX_POINTER_BYTES:
        data = bytearray(reader.facts.num_bytes)
        reader.read_into(0, memoryview(data))
        refuse_pointer(bytes(data), where=where)


def refuse_pointers(storage: Storage, facts: Mapping[str, FileFacts], names: Iterable[str]) -> None:
    """Let the small files of a checkpoint pass that are none, before they are needed.

    Raises:
        CheckpointError: One is a pointer.
    """
    for name in names:
        if len(_START) <= facts[name].num_bytes <= MAX_POINTER_BYTES:
            storage.read_bytes(name)
