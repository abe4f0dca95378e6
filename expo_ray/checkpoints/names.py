"""Names that come from files: of tensors, and of the files that an index names."""

from __future__ import annotations

import re

_UNPRINTABLE = re.compile("[\\x00-\\x1f\\x7f\\ud800-\\udfff]")


def is_plain_name(name: str) -> bool:
    """Tell whether a name is printable text.

    Lines of names feed digests and logs: a line break inside one could forge another tensor.
    """
    return bool(name) and not _UNPRINTABLE.search(name)
