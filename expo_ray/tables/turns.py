"""Turns of a chat as files write them, read into one form.

A turn is `{"role", "content"}`, or ShareGPT's `{"from", "value"}`; content is text, or a list of
text parts, which are joined as the service joins them. What is no text is refused by name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TypedDict

from expo_ray.errors import TableError
from expo_ray.json_text import parse_json

_SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}
_EXPECTED = '{"role": "...", "content": "..."}, both text'
_TOOLS = ("tool_calls", "function_call")
_MAX_SHOWN = 80


class Message(TypedDict):
    """One turn of a chat."""

    role: str
    content: str


Turns = tuple[Message, ...]


def same_words(one: str, other: str) -> bool:
    """Whether two texts differ in white space at most."""
    return one.split() == other.split()


def same_turns(some: Turns, others: Turns) -> bool:
    """Whether two chats differ in white space at most."""
    return len(some) == len(others) and all(
        one["role"] == other["role"] and same_words(one["content"], other["content"])
        for one, other in zip(some, others, strict=True)
    )


def read_turns(value: object, where: str) -> Turns:
    """Return the turns of a chat: a list of them, one of them, or either as JSON text.

    Raises:
        TableError: It is no chat, or a turn is malformed or holds more than text.
    """
    if isinstance(value, str):
        value = from_json_text(value, where) or [{"role": "user", "content": value}]
    turns = [value] if isinstance(value, dict) else value
    if not isinstance(turns, list) or not turns:
        raise TableError(
            "the messages are not a list of turns",
            where=where,
            got=type(value).__name__ if value else repr(value),
            expected='text, or [{"role": "user", "content": "..."}, ...]',
        )
    return tuple(_read_turn(turn, f"{where}[{i}]") for i, turn in enumerate(turns))


def text_of(value: object, where: str) -> str:
    """Return text that can be written and tokenized.

    Raises:
        TableError: It is no text, or holds half of a surrogate pair.
    """
    if not isinstance(value, str):
        raise TableError(
            "a column does not hold text", where=where, got=shown(value), expected="text"
        )
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise TableError(
            "the text holds half a character: a lone surrogate, which no encoding can write",
            where=where,
            got=f"\\u{ord(value[error.start]):04x} at character {error.start}",
            expected="Unicode text",
            hint="it was cut within a character, an emoji perhaps: mend or leave out the row",
        ) from error
    return value


def holds_text(value: object) -> bool:
    """Whether there is a word anywhere inside."""
    if isinstance(value, str):
        return bool(value.strip())
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return any(holds_text(part) for part in parts)


def shown(value: object) -> str:
    """Return a value for a message, shortened."""
    return repr(value)[:_MAX_SHOWN]


def from_json_text(text: str, where: str) -> list[object] | None:
    """Return the list of turns or pairs that a text holds as JSON, as in CSV; None for other text.

    Raises:
        TableError: It begins like one and is malformed.
    """
    if re.match(r"\s*\[\s*[\[{]", text) is None:
        return None
    try:
        value: list[object] = parse_json(text)
    except ValueError as error:
        raise TableError(
            "malformed JSON",
            where=where,
            got=error,
            expected='[{"role": "user", "content": "..."}, ...]',
        ) from error
    return value


def _read_turn(turn: object, where: str) -> Message:
    if not isinstance(turn, dict):
        raise TableError("a turn is malformed", where=where, got=shown(turn), expected=_EXPECTED)
    for name in _TOOLS:
        if turn.get(name):
            raise TableError(
                "a turn calls a tool, which a chat of text cannot hold",
                where=where,
                got=name,
                hint="leave the row out",
            )
    role = turn.get("role")
    content = turn.get("content")
    if role is None and content is None and "from" in turn:
        role, content = _sharegpt_role(turn["from"], where), turn.get("value")
    content = _joined(content, where) if isinstance(content, list) else content
    if not isinstance(role, str) or not role or not isinstance(content, str):
        raise TableError("a turn is malformed", where=where, got=shown(turn), expected=_EXPECTED)
    return Message(role=text_of(role, where), content=text_of(content, where))


def _sharegpt_role(name: object, where: str) -> str:
    if not isinstance(name, str) or name not in _SHAREGPT_ROLES:
        raise TableError(
            "a turn is of a kind that a chat of text cannot hold",
            where=where,
            got=shown(name),
            expected=", ".join(_SHAREGPT_ROLES),
            hint="leave the row out",
        )
    return _SHAREGPT_ROLES[name]


def _joined(parts: list[object], where: str) -> str:
    for part in parts:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text" or not isinstance(part, dict) or not isinstance(part.get("text"), str):
            raise TableError(
                "a turn holds a part that is no text",
                where=where,
                got=kind if isinstance(kind, str) and kind != "text" else shown(part),
                expected='{"type": "text", "text": "..."}',
                hint="leave the row out",
            )
    return "".join(str(part["text"]) for part in parts if isinstance(part, dict))


def unread_keys(value: object) -> set[str]:
    """Return the names of what turns hold beside role and content, and what is not read."""
    turns = value if isinstance(value, list) else [value]
    read = {"role", "content", "from", "value"}
    return {
        str(key)
        for turn in turns
        if isinstance(turn, Mapping)
        for key, inner in turn.items()
        if key not in read and holds_text(inner)
    }
