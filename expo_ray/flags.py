"""How a setting stands on the command line: declared with the setting, read by `expo_ray.cli`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Flag:
    """Metadata of a model's field: `Annotated[int, Flag(panel="Load")]` gives it a flag.

    Type, range, default and text of the flag are those of the field.
    """

    panel: str
    """Heading under which the help shows it."""
    name: str | None = None
    """Such as `--warmup`; None takes the field's name."""
    short: str | None = None
    """Such as `-v`."""
    metavar: str | None = None
    """What stands for the value in the help; None tells its type."""
    parse: Callable[[Any], Any] | None = None
    """Turns the text, of a repeated flag the list of them, into the field's value."""
    repeats: bool = False
    """Whether the flag may be given several times."""
