"""The way out for text that others wrote: onto a terminal, into Markdown. HTML escapes for itself.

A name may hold codes that move the cursor, change colours, turn the direction of writing around or
end a cell of a table. Shown is what stands there, not what it does.
"""

from __future__ import annotations

import re

# C0 without tab and line feed, DEL and C1; marks of direction; line and paragraph separators;
# halves of characters; tags, which are not seen.
_ACTING = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff"
    "\U000e0000-\U000e007f]"
)
_MARKDOWN = re.compile(r"([\\`*\[\]<>#|~&!])")


def printable(text: str) -> str:
    """Return a text with characters that act on a terminal written as their codes.

    Args:
        text: Any; tabs and line breaks stay.
    """
    return _ACTING.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def markdown_text(text: str) -> str:
    """Return a text as Markdown that shows it and nothing else, on one line."""
    return _MARKDOWN.sub(r"\\\1", _one_line(text))


def markdown_code(text: str) -> str:
    """Return a text in a code span, which may stand in a cell of a table."""
    return f"`{_one_line(text).replace('`', chr(39)).replace('|', chr(92) + '|')}`"


def _one_line(text: str) -> str:
    return re.sub(r"\s+", " ", printable(text)).strip()
