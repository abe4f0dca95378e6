"""The progress port: rooms below the command line report through it and know no terminal.

The command line hands in a Rich implementation; without one, `NullProgress` swallows everything.
"""

from __future__ import annotations

from typing import Protocol


class ProgressBar(Protocol):
    """One running line of progress."""

    def advance(self, amount: float = 1) -> None:
        """Add `amount` units of work that are done."""

    def set_total(self, total: float) -> None:
        """Say how many units there are, where that was not known at the start."""

    def close(self) -> None:
        """Mark the line as finished; further calls have no effect."""


class Progress(Protocol):
    """Where long work reports how far it is."""

    def start(self, description: str, total: float | None = None, unit: str = "") -> ProgressBar:
        """Open a line.

        Args:
            description: A few words, present tense ("Extrapolating shards").
            total: Units of work in all; None where unknown.
            unit: "B" for bytes, otherwise a plural noun ("prompts", "steps").
        """
        ...

    def message(self, text: str) -> None:
        """Print one line of news (a stage that is skipped, where a result lies)."""


class _NullBar:
    def advance(self, amount: float = 1) -> None:
        pass

    def set_total(self, total: float) -> None:
        pass

    def close(self) -> None:
        pass


class NullProgress:
    """A `Progress` that shows nothing."""

    def start(self, description: str, total: float | None = None, unit: str = "") -> ProgressBar:
        """Return a bar that ignores every call."""
        return _NullBar()

    def message(self, text: str) -> None:
        """Ignore the text."""


class CombinedProgress:
    """A `Progress` whose every line advances one line of another: many calls, one bar.

    Args:
        progress: Where the one line is drawn.
        description: A few words, present tense.
        total: Units of work of all calls together.
        unit: "B" for bytes, otherwise a plural noun.
    """

    def __init__(self, progress: Progress, description: str, *, total: float, unit: str) -> None:
        self._progress = progress
        self._bar = progress.start(description, total, unit)

    def start(self, description: str, total: float | None = None, unit: str = "") -> ProgressBar:
        """Return the one line; its own total stands."""
        return _Part(self._bar)

    def message(self, text: str) -> None:
        """Pass the news on."""
        self._progress.message(text)

    def close(self) -> None:
        """Mark the one line as finished."""
        self._bar.close()


class _Part(_NullBar):
    def __init__(self, bar: ProgressBar) -> None:
        self._bar = bar

    def advance(self, amount: float = 1) -> None:
        self._bar.advance(amount)
