"""Reading prompts from JSONL, JSON, Parquet or CSV.

A row has `prompt`, `instruction` or `messages` (the first of them that is not null counts) and
optionally `prompt_id`. What does not belong here: chat templates, tokenization, responses.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from expo_ray.errors import ConfigError, TableError

_TEXT_FIELDS = ("prompt", "instruction", "messages")
_Row = tuple[str, object]
"""(where the row is, for messages: `FILE:LINE` or `FILE row N`; its parsed value)"""


class Message(TypedDict):
    """One turn of a chat."""

    role: str
    content: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompt:
    """One chat that a model is to continue."""

    prompt_id: str
    """Unique in its file; the zero-based row number where the file gives none."""
    messages: tuple[Message, ...]
    """The turns so far; the last one is the user's."""


def read_prompts(path: str | Path, *, limit: int | None = None) -> list[Prompt]:
    """Read a prompts file; the suffix says which format it is.

    Args:
        path: `.jsonl`, `.json` (a list, `{"data": [...]}` or one object), `.parquet` or `.csv`.
        limit: Read only the first so many rows.

    Returns:
        The prompts in file order.

    Raises:
        TableError: The file is missing, empty or malformed, or an id occurs twice.
        ConfigError: `limit` is below one.
    """
    if limit is not None and limit < 1:
        raise ConfigError("the limit on prompts is too small", got=limit, expected="1 or more")
    path = Path(path)
    prompts: list[Prompt] = []
    seen: dict[str, str] = {}
    for index, (where, value) in enumerate(itertools.islice(_rows(path), limit)):
        prompt = _parse_row(value, where=where, index=index)
        if prompt.prompt_id in seen:
            raise TableError(
                "a prompt_id occurs twice",
                where=where,
                got=prompt.prompt_id,
                hint=f"it was first used at {seen[prompt.prompt_id]}",
            )
        seen[prompt.prompt_id] = where
        prompts.append(prompt)
    if not prompts:
        raise TableError("the prompts file has no rows", where=path)
    return prompts


def _rows(path: Path) -> Iterator[_Row]:
    readers = {
        ".jsonl": _jsonl_rows,
        ".ndjson": _jsonl_rows,
        ".json": _json_rows,
        ".parquet": _parquet_rows,
        ".csv": _csv_rows,
    }
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise TableError(
            "the prompts file has an unknown format",
            where=path,
            got=path.suffix or "no suffix",
            expected=".jsonl, .json, .parquet or .csv",
        )
    if not path.is_file():
        raise TableError("the prompts file does not exist", where=path)
    return reader(path)


def _read_text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        raise TableError("the file is not UTF-8 text", where=f"{path}:{line}") from error


def _jsonl_rows(path: Path) -> Iterator[_Row]:
    # Not splitlines(): U+2028 and its kin may stand unescaped inside a JSON string.
    for number, line in enumerate(_read_text(path).split("\n"), start=1):
        if line.strip():
            yield f"{path}:{number}", _parse_json(line, where=f"{path}:{number}")


def _json_rows(path: Path) -> Iterator[_Row]:
    text = _read_text(path)
    if not text.strip():
        return
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":  # several documents: JSONL under another suffix
            yield from _jsonl_rows(path)
            return
        raise TableError("malformed JSON", where=f"{path}:{error.lineno}", got=error.msg) from error
    except RecursionError as error:
        raise TableError("the JSON is nested too deeply", where=path) from error
    if isinstance(document, dict) and isinstance(document.get("data"), list):
        document = document["data"]
    for index, value in enumerate(document if isinstance(document, list) else [document]):
        yield f"{path} row {index}", value


def _parquet_rows(path: Path) -> Iterator[_Row]:
    from expo_ray.tables.schemas import read_table

    index = 0
    for batch in read_table(path).to_batches():
        for value in batch.to_pylist():
            yield f"{path} row {index}", value
            index += 1


def _csv_rows(path: Path) -> Iterator[_Row]:
    csv.field_size_limit(sys.maxsize)  # the default refuses prompts above 128 KiB
    reader = csv.DictReader(io.StringIO(_read_text(path), newline=""), strict=True)
    try:
        for row in reader:
            where = f"{path}:{reader.line_num}"
            if None in row or None in row.values():
                raise TableError(
                    "a CSV row has another number of fields than the header",
                    where=where,
                    expected=len(reader.fieldnames or ()),
                )
            # CSV knows no null: an empty field means that the column is not used.
            value: dict[str, object] = {key: text for key, text in row.items() if text != ""}
            if isinstance(value.get("messages"), str):
                value["messages"] = _parse_json(str(value["messages"]), where=where)
            yield where, value
    except csv.Error as error:
        raise TableError(
            "malformed CSV", where=f"{path}:{reader.reader.line_num}", got=error
        ) from error


def _parse_json(text: str, *, where: str) -> object:
    try:
        value: object = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise TableError("malformed JSON", where=where, got=error) from error
    return value


def _parse_row(value: object, *, where: str, index: int) -> Prompt:
    if not isinstance(value, dict):
        raise TableError(
            "a row is not an object", where=where, got=type(value).__name__, expected="an object"
        )
    field = next((name for name in _TEXT_FIELDS if value.get(name) is not None), None)
    if field is None:
        raise TableError(
            "a row has no prompt",
            where=where,
            got=", ".join(sorted(map(str, value))) or "no fields",
            expected="prompt, instruction or messages",
        )
    content = value[field]
    if isinstance(content, str):
        messages: tuple[Message, ...] = (Message(role="user", content=content),)
    else:
        messages = _parse_messages(content, where=f"{where}, {field}")
    if not messages[-1]["content"].strip():
        raise TableError("the prompt is empty", where=f"{where}, {field}")
    return Prompt(prompt_id=_parse_id(value.get("prompt_id"), where, index), messages=messages)


def _parse_id(value: object, where: str, index: int) -> str:
    if value is None:
        return str(index)
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise TableError(
            "a prompt_id is not usable", where=where, got=repr(value), expected="text or an integer"
        )
    return str(value)


def _parse_messages(value: object, *, where: str) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value:
        raise TableError(
            "the messages are not a list of turns",
            where=where,
            got=type(value).__name__ if value else repr(value),
            expected='text, or [{"role": "user", "content": "..."}, ...]',
        )
    messages = tuple(_parse_message(item, where=f"{where}[{i}]") for i, item in enumerate(value))
    if messages[-1]["role"] != "user":
        raise TableError(
            "the last turn is not the user's",
            where=where,
            got=messages[-1]["role"],
            expected="user",
            hint="leave the answer out of the prompt",
        )
    return messages


def _parse_message(value: object, *, where: str) -> Message:
    if isinstance(value, dict):
        role, content = value.get("role"), value.get("content")
        if isinstance(role, str) and role and isinstance(content, str):
            return Message(role=role, content=content)
    raise TableError(
        "a turn is malformed", where=where, expected='{"role": "...", "content": "..."}, both text'
    )
