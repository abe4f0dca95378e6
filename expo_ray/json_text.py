"""Reading JSON that others wrote: whatever is wrong with it is a ValueError, in few words.

Python's own reader raises RecursionError where brackets are nested deeply, and what it lets pass
ends in one later, wherever the value is copied, printed or written again.
"""

from __future__ import annotations

import json
from typing import Any

MAX_DEPTH = 100
"""Brackets within brackets; no file of ours, and none that was seen, has more than a dozen."""


def parse_json(text: str | bytes, **options: Any) -> Any:
    """Return the value of a JSON document.

    Args:
        text: The document; bytes are UTF-8, UTF-16 or UTF-32.
        options: Of `json.loads`.

    Raises:
        ValueError: It is malformed (then `json.JSONDecodeError`), not text, nested too deeply, or
            holds an integer of thousands of digits.
    """
    try:
        value = json.loads(text, **options)
    except RecursionError as error:
        raise ValueError("the JSON is nested too deeply") from error
    except json.JSONDecodeError:
        raise
    except ValueError as error:  # of int(), whose message speaks of an interpreter's settings
        raise ValueError(
            "an integer has too many digits" if "digits" in str(error) else str(error)
        ) from error
    _require_shallow(text, value)
    return value


def _require_shallow(text: str | bytes, value: object) -> None:
    brackets = text.count("[") + text.count("{") if isinstance(text, str) else len(text)
    if brackets <= MAX_DEPTH:  # spares nearly all lines of a file the walk
        return
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return
    raise ValueError(f"the JSON is nested more than {MAX_DEPTH} deep")
