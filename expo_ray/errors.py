"""The error tree: every failure that expo_ray reports on purpose.

A message says what went wrong; `where` names the file, tensor, flag or recipe key; `got` and
`expected` the two values; `hint` the next act. The command line prints them in that order and
`--json` emits them as one object. Each is redacted: none holds a secret. A setting is named by
`argument`, so that whoever gave it reads the name by which he gave it: `--max-shard-size`,
`extrapolation.max_shard_size` in a recipe, `max_shard_size=` in Python. What does not belong here:
retries, logging, exit itself.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar

from expo_ray.redaction import redacted

_NUM_NAMED = 5
_TEXTS = ("message", "where", "got", "expected", "hint")
# Control characters stand around a setting's name (and value): no text of ours has them.
_SETTING = re.compile("\x02(\\w+)(?:=([^\x03]*))?\x03")

Spelling = Callable[[str, str | None], str | None]
"""Takes the name of an argument in Python, and perhaps its value; returns what a user of another
way in writes for it, None where that way has no such setting."""


def argument(name: str, value: object = None) -> str:
    """Name a setting inside a text of an error.

    Args:
        name: Of the argument in Python.
        value: What it is, or should be, set to.
    """
    return f"\x02{name}\x03" if value is None else f"\x02{name}={value}\x03"


@contextlib.contextmanager
def spelled(spelling: Spelling) -> Iterator[None]:
    """Let errors that leave this block name settings in the way of its caller."""
    try:
        yield
    except ExpoError as error:
        error.spell(spelling)
        raise


def _in_python(text: str) -> str:
    return _SETTING.sub(lambda found: f"{found[1]}={found[2] or ''}", text)


class ExpoError(Exception):
    """Base of every deliberate error.

    Each text may name settings, see `argument`; it has their names in Python until it is spelled.

    Args:
        message: What went wrong, one sentence without a full stop at the end.
        where: File, tensor, flag, recipe key or URL that it concerns.
        got: The value found there.
        expected: The value or range that would have been accepted.
        hint: What to do next.
    """

    kind: ClassVar[str] = "error"
    exit_code: ClassVar[int] = 1
    message: str
    where: str | None
    got: str | None
    expected: str | None
    hint: str | None

    def __init__(
        self,
        message: str,
        *,
        where: object = None,
        got: object = None,
        expected: object = None,
        hint: str | None = None,
    ) -> None:
        self._marked: dict[str, str] = {}
        for name, text in zip(_TEXTS, (message, where, got, expected, hint), strict=True):
            self.tell(name, _text(text))
        super().__init__(self.message)

    def tell(self, name: str, text: str | None) -> None:
        """Set a text, which may name settings."""
        if text is not None and _SETTING.search(text):
            self._marked[name] = text
            text = _in_python(text)
        setattr(self, name, text)

    def told(self, name: str) -> str | None:
        """Return a text that still marks the settings which it names."""
        text: str | None = getattr(self, name)
        marked = self._marked.get(name, "")
        return marked if _in_python(marked) == text else text

    def texts(self) -> dict[str, str | None]:
        """Return all texts as `told` gives them: what another error is made of."""
        return {name: self.told(name) for name in _TEXTS}

    def spell(self, spelling: Spelling) -> None:
        """Name settings in another way than Python's; those that it does not have stay."""
        for name, text in self.texts().items():
            if text is not None:
                self.tell(name, _SETTING.sub(lambda m: spelling(m[1], m[2]) or m[0], text))

    def __str__(self) -> str:
        parts = [self.message]
        for label, value in (("where", self.where), ("got", self.got), ("expected", self.expected)):
            if value is not None:
                parts.append(f"{label}: {value}")
        if self.hint is not None:
            parts.append(f"hint: {self.hint}")
        return "\n  ".join(parts)

    def __reduce__(self) -> tuple[object, ...]:
        # Ray pickles errors between processes; keyword-only arguments need this.
        return (
            _rebuild,
            (type(self), *self.texts().values()),
        )

    def as_dict(self) -> dict[str, str | None]:
        """Return the `error` object of the `--json` contract."""
        return {
            "kind": self.kind,
            "message": self.message,
            "where": self.where,
            "got": self.got,
            "expected": self.expected,
            "hint": self.hint,
        }


def _text(value: object) -> str | None:
    return None if value is None else redacted(str(value))


def first_names(names: Sequence[str]) -> str:
    """Return the first of many names, and how many more there are."""
    more = f" and {len(names) - _NUM_NAMED} more" if len(names) > _NUM_NAMED else ""
    return ", ".join(names[:_NUM_NAMED]) + more


def _rebuild(
    cls: type[ExpoError],
    message: str,
    where: str | None,
    got: str | None,
    expected: str | None,
    hint: str | None,
) -> ExpoError:
    return cls(message, where=where, got=got, expected=expected, hint=hint)


class InternalError(ExpoError):
    """Nobody foresaw this failure: a defect of expo_ray, or of what it stands on."""

    kind = "internal"


class StoppedError(ExpoError):
    """A signal ended the work; a rerun continues."""

    kind = "stopped"


class RequestError(ExpoError):
    """The request was wrong: nothing was written, exit code 2."""

    kind = "request"
    exit_code = 2


class ConfigError(RequestError):
    """A flag, recipe key, value or output folder does not fit the request."""

    kind = "config"


class CheckpointError(RequestError):
    """A checkpoint is missing, malformed or of a kind that is not supported."""

    kind = "checkpoint"


class PairError(RequestError):
    """Initial and aligned do not belong together (names, shapes, vocabulary, architecture)."""

    kind = "pair"


class TableError(RequestError):
    """A prompts, responses or rewards file is malformed."""

    kind = "table"


class MissingExtraError(RequestError):
    """An optional dependency is not installed; the hint is the exact install command."""

    kind = "missing-extra"


class WorkError(ExpoError):
    """The request was fine and the work failed: exit code 1, a rerun continues."""

    kind = "work"


class ShardError(WorkError):
    """One output shard could not be computed (non-finite values, overflow, changed input)."""

    kind = "shard"


class VerifyError(WorkError):
    """A written checkpoint differs from what its record says."""

    kind = "verify"


class ServingError(WorkError):
    """Replicas did not start, answered with an error or serve other weights than asked for."""

    kind = "serving"


class EvaluationError(WorkError):
    """Scoring, load testing, selection or a benchmark could not be completed."""

    kind = "evaluation"
