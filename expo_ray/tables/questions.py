"""From the columns of a row to the chat that it asks: the forms in which prompts are published.

The question stands in `instruction`, `prompt`, `messages` or `conversations` (ShareGPT's). `input`
(Alpaca's) or `context` (Dolly's) follow an instruction, or where there is none the prompt, after a
line break; `history` (pairs of question and answer) goes before, `system` before everything.
Columns that say two different things are refused; those that are not read are named once.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import cache
from typing import NamedTuple

from expo_ray.errors import TableError, argument, first_names
from expo_ray.tables.turns import (
    Message,
    Turns,
    from_json_text,
    holds_text,
    read_turns,
    same_turns,
    same_words,
    text_of,
    unread_keys,
)

QUESTIONS = ("instruction", "prompt", "messages", "conversations")
"""Columns that hold the question; one is enough."""
_CHATS = ("messages", "conversations")
_DETAILS = ("input", "context")
_SYSTEMS = ("system", "system_prompt")
COLUMNS = (*QUESTIONS, *_DETAILS, *_SYSTEMS, "history")
"""Columns that belong to a question."""

_logger = logging.getLogger(__name__)
Row = Mapping[str, object]


class Question(NamedTuple):
    """The chat that a row asks."""

    turns: Turns
    """Only the system's where no column holds a question."""
    column: str | None
    """The column that holds the question, by our name."""


class QuestionReader:
    """Reads the questions of rows, and remembers which columns it did not read.

    Args:
        columns: The file's names of our columns. Where they name one that holds the question, the
            others that could are not read.
        known: Columns that the caller reads.
        cut_answers: Whether an answer at the end of `messages` is left out: `conversations` have
            one always.
    """

    def __init__(
        self,
        columns: Mapping[str, str] | None = None,
        *,
        known: tuple[str, ...] = (),
        cut_answers: bool = False,
    ) -> None:
        columns = columns or {}
        self._is_named = is_named = bool(set(QUESTIONS) & set(columns))
        same = (name for name in COLUMNS if name not in {*columns, *columns.values()})
        self._names = {n: n for n in same if not (is_named and n in QUESTIONS)} | dict(columns)
        self._known = {*known, *columns.values()}
        # A chat that is named as the prompt ends with its answer in most files.
        self._cut = (*_CHATS, *QUESTIONS) if cut_answers else ("conversations", *columns)
        self._unread: set[str] = set()

    def read(self, row: Row, where: str) -> Question:
        """Return the chat that a row asks.

        Raises:
            TableError: A column is malformed, or two contradict each other.
        """
        given = {
            ours: row[name]
            for ours, name in self._names.items()
            if row.get(name) is not None and not (self._is_named and _is_other(ours, row[name]))
        }
        asked = self._asked(row, given)
        if not asked:
            return Question(_one_system(_system_columns(given, where), where), None)
        main = asked[0]
        chats = {name: self._chat(name, given.get(name, ""), where) for name in asked}
        alone = chats[main].turns
        used = {*asked, *(name for name in (*_SYSTEMS, "history") if name in given)}
        turns = alone
        if (
            main not in _CHATS
            and isinstance(given.get(main, ""), str)
            and self._has_details(row, main)
        ):
            used.update(name for name in _DETAILS if name in given)
            turns = _with_details(alone, given, where)
        full = _after_history(_history(given.get("history"), f"{where}, history"), turns, where)
        for name in asked[1:]:
            told = chats[name].turns
            said = [(told, form) for form in (alone, turns, full)]
            said += [(_without_answer(told), form) for form in (turns, full)]
            if any(same_turns(*pair) for pair in said):
                continue
            asks = main not in _CHATS and name in _CHATS
            part = _up_to(turns[-1]["content"], chats[name]) if asks else None
            if part is None:
                raise _contradiction(where, (main, full), (name, told))
            if len(told) > len(part) + 1:
                self._unread.add(f"{self._names[name]} after the prompt")
            full = part
        system = _one_system(
            [*(chat.system for chat in chats.values()), *_system_columns(given, where)], where
        )
        self._note(row, {self._names[name] for name in used if name in self._names})
        return Question((*system, *full), main)

    def tell(self, where: object) -> None:
        """Say once which columns of a file hold text that was not read."""
        if self._unread:
            names = first_names(sorted(self._unread))
            _tell_once(f"{where}: not part of the prompts, and not read: {names}")

    def _chat(self, name: str, value: object, where: str) -> _Chat:
        where = f"{where}, {name}"
        if isinstance(value, str) and name not in _CHATS:
            return _Chat(None, (Message(role="user", content=text_of(value, where)),))
        self._unread.update(f"{self._names[name]}[].{key}" for key in unread_keys(value))
        turns = read_turns(value, where)
        system = turns[0]["content"] if turns[0]["role"] == "system" else None
        turns = turns if system is None else turns[1:]
        return _Chat(system, _without_answer(turns) if name in self._cut else turns)

    def _asked(self, row: Row, given: Row) -> list[str]:
        """Return the columns that hold the question; blank ones only where there is no other."""
        asked = [name for name in QUESTIONS if name in given]
        filled = [name for name in asked if holds_text(given[name])]
        if not asked and any(_is_filled(given.get(name)) for name in _DETAILS):
            asked = [name for name in ("instruction", "prompt") if self._names.get(name) in row]
        return filled or asked[:1]

    def _has_details(self, row: Row, main: str) -> bool:
        """Whether input and context are those of the main column, not of an instruction beside."""
        named = self._names.get(main)
        is_it = "instruction" in (main, named)
        return is_it or "instruction" in self._names or not row.get("instruction")

    def _note(self, row: Row, used: set[str]) -> None:
        read = used | self._known
        self._unread.update(
            str(name) for name, value in row.items() if name not in read and holds_text(value)
        )


def _is_other(name: str, value: object) -> bool:
    """Whether a column beside a named question holds something else than the name promises."""
    if name in (*_DETAILS, *_SYSTEMS):
        return not isinstance(value, str)
    return name == "history" and not isinstance(value, list)


class _Chat(NamedTuple):
    system: str | None
    turns: Turns


@cache  # a command may read the same file more than once
def _tell_once(text: str) -> None:
    _logger.warning("%s", text)


def _up_to(question: str, chat: _Chat) -> Turns | None:
    """Return the chat up to a question that is one of its turns; None where it is none.

    UltraChat gives the first question of a chat beside it. That of no_robots may be what the
    system says: the chat then counts.
    """
    if chat.system is not None and same_words(chat.system, question):
        return _without_answer(chat.turns)
    for number, turn in enumerate(chat.turns, 1):
        if turn["role"] == "user" and same_words(turn["content"], question):
            return chat.turns[:number]
    return None


def _without_answer(turns: Turns) -> Turns:
    return turns[:-1] if turns and turns[-1]["role"] == "assistant" else turns


def _with_details(turns: Turns, given: Row, where: str) -> Turns:
    details = {text_of(given[n], f"{where}, {n}"): n for n in _DETAILS if _is_filled(given.get(n))}
    if len(details) > 1:
        first, second = ((name, text) for text, name in details.items())
        raise _contradiction(where, first, second)
    parts = [text for text in (turns[0]["content"], *details) if text.strip()]
    return (Message(role="user", content="\n".join(parts)),)


def _is_filled(value: object) -> bool:
    """Whether a column is filled: neither null nor blank."""
    if isinstance(value, str):
        return bool(value.strip())
    return bool(value) if isinstance(value, list | dict) else value is not None


def _history(value: object, where: str) -> Turns:
    """Return earlier turns, given as pairs of question and answer or as turns."""
    if not _is_filled(value):
        return ()
    if isinstance(value, str):
        value = from_json_text(value, where)
    if isinstance(value, list) and all(isinstance(pair, list) for pair in value):
        turns: list[Message] = []
        for i, pair in enumerate(value):
            if len(pair) != 2:
                raise TableError(
                    "a turn of the history is no pair",
                    where=f"{where}[{i}]",
                    got=f"{len(pair)} texts",
                    expected='["question", "answer"]',
                )
            texts = [text_of(text or "", f"{where}[{i}]") for text in pair]
            named = zip(("user", "assistant"), texts, strict=True)
            turns += [Message(role=role, content=text) for role, text in named if text.strip()]
        return tuple(turns)
    if not isinstance(value, list):
        raise TableError(
            "the history is not a list of pairs",
            where=where,
            expected='[["question", "answer"], ...]',
        )
    return read_turns(value, where)


def _after_history(history: Turns, turns: Turns, where: str) -> Turns:
    if len(turns) <= 1:
        return (*history, *turns)
    if history and turns[: len(history)] != history:
        raise _contradiction(where, ("history", history), ("the chat", turns))
    return turns


def _system_columns(given: Row, where: str) -> list[str | None]:
    return [text_of(given[n], f"{where}, {n}") for n in _SYSTEMS if _is_filled(given.get(n))]


def _one_system(texts: list[str | None], where: str) -> Turns:
    found = list(dict.fromkeys(text for text in texts if text and text.strip()))
    if len(found) > 1:
        raise _contradiction(where, ("system", found[0]), ("system", found[1]))
    return tuple(Message(role="system", content=text) for text in found)


def _contradiction(where: str, one: tuple[str, object], two: tuple[str, object]) -> TableError:
    return TableError(
        f"{one[0]} and {two[0]} of a row say two different things",
        where=where,
        got="; ".join(f"{name}: {_last_text(value)!r}" for name, value in (one, two)),
        hint="leave out the one that does not count; or name the one that does with "
        f"{argument('columns')}",
    )


def _last_text(value: object) -> str:
    text = value[-1]["content"] if isinstance(value, tuple) and value else str(value)
    return str(text)[:60]
