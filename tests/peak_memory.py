"""The most memory that this process has taken; for scripts that measure themselves. Light."""

from __future__ import annotations

import re
from pathlib import Path


def peak_bytes() -> int:
    """Return the peak of the resident memory, not counting what was there before this program.

    `ru_maxrss` does count it: a process inherits that from the one that started it.
    """
    found = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024
