"""Reading prompts from JSONL, JSON, Parquet or CSV.

A row has `prompt`, `instruction` or `messages` (the first of them that is not null counts) and
optionally `prompt_id`. What does not belong here: chat templates, tokenization, responses.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from expo_ray.checkpoints import atomic_write_text
from expo_ray.errors import ConfigError, TableError
from expo_ray.tables.prompt_files import prompt_files
from expo_ray.tables.prompt_rows import read_rows
from expo_ray.tables.seeds import shuffled

_TEXT_FIELDS = ("prompt", "instruction", "messages")


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


def read_prompts(
    path: str | Path,
    *,
    limit: int | None = None,
    columns: Mapping[str, str] | None = None,
    num_prompts: int | None = None,
    seed: int = 42,
) -> list[Prompt]:
    """Read prompts; the suffix says which format it is.

    Args:
        path: `.jsonl`, `.json` (a list, `{"data": [...]}` or one object), `.parquet` or `.csv`:
            a local path, `s3://`, `gs://`, or a dataset on the Hub
            (`hf://datasets/OWNER/NAME[@REVISION][/FILE][#split=NAME]`, read without its scripts).
        limit: Read only the first so many rows.
        columns: The source's names of our columns: `{"prompt": "question", "prompt_id": "uid"}`.
        num_prompts: Draw so many at random; the draw depends on the ids and the seed alone, and
            rows appended later push out as few of them as possible.
        seed: Seed of the draw.

    Returns:
        The prompts in file order.

    Raises:
        TableError: The file is missing, empty or malformed, or an id occurs twice.
        ConfigError: `limit` or `num_prompts` does not fit, or a column is not one of ours.
    """
    for name, number in (("limit", limit), ("number", num_prompts)):
        if number is not None and number < 1:
            raise ConfigError(
                f"the {name} of prompts is too small",
                where="prompts",
                got=number,
                expected="1 or more",
            )
    unknown = set(columns or ()) - {*_TEXT_FIELDS, "prompt_id"}
    if unknown:
        raise ConfigError(
            "a prompt has no such column",
            where="columns",
            got=", ".join(sorted(unknown)),
            expected=", ".join((*_TEXT_FIELDS, "prompt_id")),
        )
    prompts: list[Prompt] = []
    seen: dict[str, str] = {}
    rows = itertools.chain.from_iterable(read_rows(file) for file in prompt_files(path))
    for index, (where, value) in enumerate(itertools.islice(rows, limit)):
        mapped = _mapped(value, columns, where) if columns else value
        prompt = _parse_row(mapped, where=where, index=index)
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
        raise TableError(
            "the prompts file has no rows",
            where=path,
            got="no rows",
            expected='one prompt or more, as {"prompt": "..."}',
        )
    return prompts if num_prompts is None else _sample(prompts, num_prompts, seed, where=path)


def write_prompts(path: Path, prompts: Sequence[Prompt]) -> None:
    """Write prompts as JSONL that `read_prompts` reads back."""
    rows = [{"prompt_id": p.prompt_id, "messages": list(p.messages)} for p in prompts]
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def _sample(
    prompts: list[Prompt], num_prompts: int, seed: int, *, where: str | Path
) -> list[Prompt]:
    if num_prompts > len(prompts):
        raise ConfigError(
            "more prompts are asked for than there are",
            where=where,
            got=num_prompts,
            expected=f"at most {len(prompts)}",
        )
    order = shuffled([prompt.prompt_id for prompt in prompts], seed=seed, purpose="sample")
    kept = set(order[:num_prompts])
    return [prompt for prompt in prompts if prompt.prompt_id in kept]


def _mapped(value: object, columns: Mapping[str, str], where: str) -> object:
    """Return the row under our names; without a text column of ours among them, as it is beside."""
    if not isinstance(value, dict):
        return value
    missing = [theirs for theirs in columns.values() if theirs not in value]
    if missing:
        raise TableError(
            "a row lacks a column",
            where=where,
            got=", ".join(sorted(map(str, value))) or "no fields",
            expected=", ".join(missing),
            hint="every row needs the columns that were named for prompts",
        )
    mapped = {ours: value[theirs] for ours, theirs in columns.items()}
    rest = ("prompt_id",) if set(_TEXT_FIELDS) & set(columns) else (*_TEXT_FIELDS, "prompt_id")
    return {**{name: value[name] for name in rest if name in value}, **mapped}


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
        raise TableError(
            "the prompt is empty",
            where=f"{where}, {field}",
            got=repr(messages[-1]["content"]),
            expected="some text",
            hint="leave the row out, or fill it",
        )
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
        "a turn is malformed",
        where=where,
        got=repr(value)[:80],
        expected='{"role": "...", "content": "..."}, both text',
    )
