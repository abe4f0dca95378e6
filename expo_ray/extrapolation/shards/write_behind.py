"""Starting the disk early: bytes that are written go to the disk while the next ones are computed.

Without it the kernel holds a whole shard back until the final fsync, and the disk idles meanwhile.
"""

from __future__ import annotations

import ctypes
import sys

_START_WRITING = 2  # SYNC_FILE_RANGE_WRITE

_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
_sync_file_range = getattr(_libc, "sync_file_range", None)
if _sync_file_range is not None:
    _sync_file_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)


def start_writing(descriptor: int, offset_bytes: int, num_bytes: int) -> None:
    """Ask the kernel to begin writing a range; it promises nothing, only fsync does.

    Does nothing where the system has no such call or the file system refuses it.
    """
    if _sync_file_range is not None:
        _sync_file_range(descriptor, offset_bytes, num_bytes, _START_WRITING)
