"""`check:python=MODULE:FUNCTION`: a function of the user's decides.

    def FUNCTION(response: str, row: dict) -> float | bool

`row` holds the prompt's `messages` and, where the prompt has them, `answer`, `constraints` and
`tests`, as text. The module is imported in the process of the check alone, from the folder that the
command was started in or from what is installed there.
"""

from __future__ import annotations

import importlib
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from expo_ray.errors import ConfigError
from expo_ray.rewards.checks.kind import (
    Arguments,
    BrokenCheckError,
    Check,
    Checked,
    CheckKind,
    unusable_check,
)
from expo_ray.rewards.checks.python_sources import source_digest

_FORM = "check:python=MODULE:FUNCTION"
_NAME = r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*"


class PythonCheck(Check):
    """Calls a function."""

    def __init__(self, function: Callable[[str, dict[str, Any]], object]) -> None:
        self._function = function

    def reward(self, checked: Checked) -> float:
        """Return what the function does."""
        row = {"messages": checked.messages, **checked.columns}
        try:
            reward = self._function(checked.response, row)
        except MemoryError:
            raise
        except BaseException as error:
            told = f"the function raises {type(error).__name__}: {error}"
            raise BrokenCheckError(told) from error
        if isinstance(reward, bool | int | float) and math.isfinite(reward):
            return float(reward)
        raise BrokenCheckError(f"the function returns {reward!r:.80}, not a number or a bool")


def _parse(text: str | None) -> Arguments:
    match = re.fullmatch(rf"({_NAME}):({_NAME})", text or "")
    if match is None:
        raise unusable_check(f"check:python={text or ''}", _FORM)
    return {"module": match[1], "function": match[2]}


def _pin(arguments: Arguments) -> Arguments:
    """Say from which folder, and pin what is in it: other code makes other rewards.

    Raises:
        ConfigError: It was pinned before, and is other code by now, or on this node.
    """
    folder = Path(arguments.get("folder") or Path.cwd())
    found = source_digest(folder, arguments["module"])
    if arguments.get("sha256", found) != found:
        raise ConfigError(
            "the module of a check is other code than when the work began",
            where=f"{folder}, module {arguments['module']}",
            got=f"sha256 {found}",
            expected=f"sha256 {arguments['sha256']}",
            hint="leave it alone meanwhile; on several nodes each needs the same files",
        )
    return {**arguments, "folder": str(folder), "sha256": found}


def _open(arguments: Arguments) -> Check:
    if folder := arguments.get("folder"):
        sys.path.insert(0, folder)
    try:
        found: Any = importlib.import_module(arguments["module"])
        for name in arguments["function"].split("."):
            found = getattr(found, name)
    except MemoryError:
        raise
    except BaseException as error:
        raise BrokenCheckError(f"{type(error).__name__}: {error}") from error
    if not callable(found):
        raise BrokenCheckError(f"{arguments['function']} is a {type(found).__name__}, no function")
    return PythonCheck(found)


PYTHON = CheckKind(
    name="python",
    form=_FORM,
    parse=_parse,
    pin=_pin,
    open=_open,
    reads_all=True,
    gives_shares=False,
    max_memory_bytes=8 * 2**30,
)
