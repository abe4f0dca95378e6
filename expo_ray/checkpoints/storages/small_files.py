"""Files of a checkpoint that are read whole: configs, tokenizers, records."""

from __future__ import annotations

from expo_ray.checkpoints.storages.lfs_pointers import refuse_pointer
from expo_ray.checkpoints.storages.storage import MAX_SMALL_FILE_BYTES, RangeReader
from expo_ray.errors import CheckpointError


def read_small_file(reader: RangeReader, *, where: object) -> bytes:
    """Return the content of an open file.

    Args:
        reader: The file.
        where: Named in errors.

    Raises:
        CheckpointError: It is too big to be such a file, or a Git LFS pointer.
        EOFError: It ends before its size.
        OSError: It cannot be read.
    """
    if reader.facts.num_bytes > MAX_SMALL_FILE_BYTES:
        raise CheckpointError(
            "the file is too big for its kind",
            where=where,
            got=f"{reader.facts.num_bytes} bytes",
            expected=f"at most {MAX_SMALL_FILE_BYTES} bytes",
        )
    data = bytearray(reader.facts.num_bytes)
    reader.read_into(0, memoryview(data))
    refuse_pointer(bytes(data), where=where)
    return bytes(data)
