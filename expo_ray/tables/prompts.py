"""Reading prompts from JSONL, JSON, Parquet or CSV.

A row has one of the columns that `questions` reads, and optionally `prompt_id` and the columns that
answers are checked against (`checked_columns`). What does not belong here: chat templates,
tokenization, responses.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from expo_ray.checkpoints import atomic_write_text
from expo_ray.errors import ConfigError, TableError, argument
from expo_ray.tables.checked_columns import CHECKED_COLUMNS, IFEVAL_COLUMNS, read_checked
from expo_ray.tables.prompt_files import prompt_files
from expo_ray.tables.prompt_rows import read_rows
from expo_ray.tables.questions import COLUMNS, QUESTIONS, QuestionReader
from expo_ray.tables.seeds import shuffled
from expo_ray.tables.turns import Message, shown, text_of

__all__ = ["Message", "Prompt", "read_prompts", "write_prompts"]

_COLUMNS = (*COLUMNS, "prompt_id", *CHECKED_COLUMNS)


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompt:
    """One chat that a model is to continue."""

    prompt_id: str
    """Unique in its file; the zero-based row number where the file gives none."""
    messages: tuple[Message, ...]
    """The turns so far; the last one is the user's."""
    checked: Mapping[str, str] = field(default_factory=dict)
    """What an answer is checked against, of `answer`, `constraints` and `tests` those it has."""


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
    unknown = set(columns or ()) - set(_COLUMNS)
    if unknown:
        raise ConfigError(
            "a prompt has no such column",
            where="columns",
            got=", ".join(sorted(unknown)),
            expected=", ".join(_COLUMNS),
        )
    columns = columns or {}
    id_column = columns.get("prompt_id", "prompt_id")
    checked = [columns.get(name, name) for name in CHECKED_COLUMNS]
    questions = QuestionReader(
        {name: column for name, column in columns.items() if name not in CHECKED_COLUMNS},
        known=(id_column, *checked, *IFEVAL_COLUMNS),
    )
    prompts: list[Prompt] = []
    seen: dict[str, str] = {}
    rows = itertools.chain.from_iterable(read_rows(file) for file in prompt_files(path))
    for index, (where, value) in enumerate(itertools.islice(rows, limit)):
        row = _row_with(value, columns.values(), where)
        messages = _messages(row, questions, where)
        prompt_id = _parse_id(row.get(id_column), where, index)
        prompt = Prompt(
            prompt_id=prompt_id, messages=messages, checked=read_checked(row, columns, where)
        )
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
    questions.tell(path)
    return prompts if num_prompts is None else _sample(prompts, num_prompts, seed, where=path)


def write_prompts(path: Path, prompts: Sequence[Prompt]) -> None:
    """Write prompts as JSONL that `read_prompts` reads back."""
    rows = [{"prompt_id": p.prompt_id, "messages": list(p.messages), **p.checked} for p in prompts]
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


def _row_with(value: object, columns: Iterable[str], where: str) -> dict[str, object]:
    if not isinstance(value, dict):
        raise TableError(
            "a row is not an object", where=where, got=type(value).__name__, expected="an object"
        )
    missing = [name for name in columns if name not in value]
    if missing:
        raise TableError(
            "a row lacks a column",
            where=where,
            got=_fields(value),
            expected=", ".join(missing),
            hint=f"every row needs the columns that {argument('columns')} names, spelt as there",
        )
    return value


def _messages(row: dict[str, object], questions: QuestionReader, where: str) -> tuple[Message, ...]:
    question = questions.read(row, where)
    if question.column is None:
        raise TableError(
            "a row has no prompt",
            where=where,
            got=_fields(row),
            expected=f"{', '.join(QUESTIONS[:-1])} or {QUESTIONS[-1]}",
            hint=f"{argument('columns')} tells the prompt's column; in a recipe {{prompt: NAME}}",
        )
    last = question.turns[-1] if question.turns else Message(role="nobody", content="")
    where = f"{where}, {question.column}"
    if last["role"] != "user":
        raise TableError(
            "the last turn is not the user's",
            where=where,
            got=last["role"],
            expected="user",
            hint="leave the answer out of the prompt",
        )
    if not last["content"].strip():
        raise TableError(
            "the prompt is empty",
            where=where,
            got=repr(last["content"]),
            expected="some text",
            hint="leave the row out, or fill it",
        )
    return question.turns


def _fields(row: dict[str, object]) -> str:
    return ", ".join(sorted(map(str, row))) or "no fields"


def _parse_id(value: object, where: str, index: int) -> str:
    if value is None:
        return str(index)
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise TableError(
            "a prompt_id is not usable",
            where=where,
            got=shown(value),
            expected="text or an integer",
        )
    return text_of(value, f"{where}, prompt_id") if isinstance(value, str) else str(value)
