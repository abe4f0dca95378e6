"""Tables of numbers on any width: columns go by importance, words fold, numbers never break."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from expo_ray.cli.session import new_table

_GAP = 2
_MIN_WORDS = 16
"""Narrower than this a column of words is a column of letters."""
_MIN_NAMES = 12


def print_table(
    console: Console,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    title: str | None = None,
    droppable: Sequence[str] = (),
    names_fold: bool = False,
) -> None:
    """Print a table whose last column holds words, and all others numbers.

    Where it is wider than the console, or than the 80 columns of a log file, it says which columns
    are left out.

    Args:
        console: Where.
        columns: Headings.
        rows: One text per heading.
        title: Above the table, if any.
        droppable: Headings, the least important first.
        names_fold: Whether the first column holds long names, which may break anywhere.
    """
    left_out: list[str] = []
    for name in droppable:
        if _width(columns, rows, names_fold) <= console.width:
            break
        if name not in columns:
            continue
        place = list(columns).index(name)
        columns, *rows = ([*row[:place], *row[place + 1 :]] for row in (columns, *rows))
        left_out.append(name)
    table = new_table(*columns, title=title)
    first, words = table.columns[0], table.columns[-1]
    first.no_wrap, words.no_wrap, words.justify = not names_fold, False, "left"
    for row in rows:
        table.add_row(*row)
    # Wider than the console only where numbers alone are.
    console.print(table, width=max(console.width, _width(columns, rows, names_fold)), crop=False)
    if left_out:
        console.print(f"left out at this width: {', '.join(left_out)}", style="dim", markup=False)


def _width(columns: Sequence[str], rows: Sequence[Sequence[str]], names_fold: bool) -> int:
    """Return the least width at which nothing but words breaks."""
    *numbers, words = zip(columns, *rows, strict=True)
    longest_word = max(len(word) for text in words for word in (text.split() or [""]))
    widths = [max(map(len, cells)) for cells in numbers]
    if names_fold:
        widths[0] = min(widths[0], _MIN_NAMES)
    width_of_words = min(max(map(len, words)), max(_MIN_WORDS, longest_word))
    return sum(widths) + _GAP * len(widths) + width_of_words
