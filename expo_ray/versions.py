"""The versions that a result may depend on."""

from __future__ import annotations

import contextlib
import platform
from importlib import metadata

from expo_ray import __version__

_PACKAGES = ("ray", "torch", "transformers", "safetensors", "numpy", "pyarrow")


def versions() -> dict[str, str]:
    """Return the versions of this code, of Python, and of what is installed of the rest.

    A job that brings this code along runs it where no package of its name is installed, or another
    one: its version is the code's own.
    """
    found = {"expo-ray": __version__, "python": platform.python_version()}
    for name in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found
