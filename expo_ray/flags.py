"""How a setting stands on the command line: declared with the setting, read by `expo_ray.cli`."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from expo_ray.errors import ConfigError, argument


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


def require_first(name: str, known: Collection[str], *, setting: str, text: str) -> None:
    """Check that of a flag's `NAME=VALUE` texts none sets a name for the second time.

    Args:
        name: That the text sets.
        known: Names that were set before.
        setting: The flag, by its name in Python.
        text: As it was given.

    Raises:
        ConfigError: It does.
    """
    if name in known:
        raise ConfigError(
            "a name is set twice",
            where=argument(setting),
            got=text,
            expected=f"one value for {name}",
            hint="leave one of them out",
        )
