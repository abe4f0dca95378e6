"""A process of our own that runs one function of this package."""

from __future__ import annotations

import sys
from collections.abc import Callable


def child_command(function: Callable[[], object], *arguments: str) -> list[str]:
    """Return the command of a Python that calls a function and finds modules where this one does.

    `-m` would import from the folder that the command is called in, and the processes of
    `multiprocessing` start a user's script anew where it does not guard its main part.

    Args:
        function: Of a module, by its own name there.
        arguments: What it finds in `sys.argv` after the first.
    """
    module, name = function.__module__, function.__qualname__
    code = f"import sys; sys.path[:] = {sys.path!r}; from {module} import {name}; {name}()"
    return [sys.executable, "-c", code, *arguments]
