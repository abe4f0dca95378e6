"""The console of a command: nothing printed on it acts on the terminal but its own codes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TextIO

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from expo_ray.printable import printable


class PlainConsole(Console):
    """A console that takes every text for text: no codes, no markup, no names of emoji.

    Args:
        file: Where it writes.
    """

    def __init__(self, file: TextIO) -> None:
        super().__init__(file=file, markup=False, emoji=False)

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Yield what is to be written; what Rich adds itself (`control`) is left alone."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=printable(segment.text))

    def render_str(self, text: str, **how: Any) -> Any:
        """Return a text that is shown; Rich takes some codes out without a word."""
        return super().render_str(printable(text), **how)
