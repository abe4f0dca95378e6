"""What a kind of check is to the rest of the house.

A check says 1 for a right answer and 0 for a wrong one, an unreadable one included; some give
shares between. Where the check itself cannot say, because what it checks against is unusable or it
breaks, there is no number but a reason.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from expo_ray.errors import ConfigError, argument

Arguments = Mapping[str, Any]


class BrokenCheckError(Exception):
    """The check cannot say whether an answer is right; the text is why."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Checked:
    """One answer, and what it is checked against."""

    messages: list[dict[str, str]]
    """The chat that it answers."""
    response: str
    columns: Mapping[str, str] = field(default_factory=dict)
    """Of `answer`, `constraints` and `tests` those that the prompt has."""


class Check(ABC):
    """A check that is ready."""

    @abstractmethod
    def reward(self, checked: Checked) -> float:
        """Return 1 for a right answer, 0 for a wrong one.

        Raises:
            BrokenCheckError: It cannot be said.
        """

    def unreadable(self, checked: Checked) -> str | None:
        """Return what a wrong answer lacks that could be checked at all; None where it has it."""
        return None

    def target_fault(self, target: str) -> str | None:
        """Return why nothing can be checked against a value of the column; None where it can."""
        return None


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """An answer of which a check must know whether it is right."""

    response: str
    is_right: bool
    target: str | None = None
    """What stands in the column that the check needs."""


def no_argument(argument_text: str | None, form: str) -> Arguments:
    """Return no arguments, for kinds that take none.

    Raises:
        ConfigError: There is one.
    """
    if argument_text is not None:
        raise unusable_check(f"{form}={argument_text}", form)
    return {}


def version_of(arguments: Arguments) -> dict[str, Any]:
    """Return what of a check's pinned arguments decides its rewards: not where it lies."""
    return {name: arguments[name] for name in sorted(arguments) if name not in ("folder", "path")}


def as_it_is(arguments: Arguments) -> Arguments:
    """Return arguments that mean the same everywhere already."""
    return arguments


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckKind:
    """One kind of check. `registry.CHECK_KINDS` holds one record of each."""

    name: str
    """One word after `check:`."""
    form: str
    """How it is written, for errors."""
    parse: Callable[[str | None], Arguments]
    """Takes what stands after `=`, None without one; raises `ConfigError`. Loads nothing."""
    open: Callable[[Arguments], Check]
    """Returns the check, in the process that checks."""
    pin: Callable[[Arguments], Arguments] = as_it_is
    """Returns arguments that mean the same on every node; refuses what is not there."""
    column: str | None = None
    """The column that prompts must have."""
    reads_all: bool = False
    """Whether it is handed every column there is, and needs none."""
    takes_file: bool = False
    """Whether what stands after `=` is a path."""
    trials: tuple[Trial, ...] = ()
    """A right and a wrong answer at least, for the self-test."""
    vote: Callable[[str], str | None] | None = None
    """Returns what a response answers, so that equal answers are one text; None where it answers
    nothing. None for kinds whose answers cannot be compared."""
    gives_shares: bool = True
    """Whether all rewards are shares, right (1) and wrong (0) among them; else any number."""
    has_own_process: bool = True
    """Whether it runs in a process with limits; else it waits for others, many at a time."""
    max_row_seconds: float = 10.0
    """For one answer, in its own process."""
    max_memory_bytes: int = 4 * 2**30
    """Of its own process."""


def unusable_check(text: str, expected: str) -> ConfigError:
    """Return the error for a check that is not written as its kind is."""
    return ConfigError(
        "a check is not written as its kind is",
        where=argument("reward_model"),
        got=repr(text),
        expected=expected,
    )
