"""The Arrow schemas of the responses and rewards tables, and one reader with clear errors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from expo_ray.errors import TableError, first_names
from expo_ray.tables.checked_columns import CHECKED_COLUMNS

RESPONSES_SCHEMA: pa.Schema = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("sample", pa.int32()),
        ("split", pa.string()),
        ("messages", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))),
        ("response", pa.string()),
        ("model", pa.string()),
        ("alpha", pa.float64()),
        ("weights_digest", pa.string()),
        ("seed", pa.int64()),
        ("finish_reason", pa.string()),
        ("prompt_tokens", pa.int64()),
        ("completion_tokens", pa.int64()),
        ("error", pa.string()),
        ("thought", pa.string()),
        ("thought_tokens", pa.int64()),
    ]
)
"""One row per generated response; key (prompt_id, sample, weights_digest).

`response` is the answer alone, `thought` what a reasoning model wrote before it, null where it
wrote nothing. `completion_tokens` counts both, `thought_tokens` those of the thought and its tags.
Where the prompts say what answers are checked against, those columns follow: `responses_schema`.
"""
_LATER_COLUMNS = frozenset({"thought", "thought_tokens", "unreadable"})
"""Tables from before these columns stay readable: they are null there."""

REWARDS_SCHEMA: pa.Schema = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("sample", pa.int32()),
        ("split", pa.string()),
        ("alpha", pa.float64()),
        ("weights_digest", pa.string()),
        ("seed", pa.int64()),
        ("reward", pa.float64()),
        ("reward_model", pa.string()),
        ("reward_model_revision", pa.string()),
        ("tokens", pa.int64()),
        ("truncated", pa.bool_()),
        ("error", pa.string()),
        ("unreadable", pa.string()),
    ]
)
"""One row per scored response; the response's key plus the reward model. Null reward = error.

`unreadable` tells of a wrong answer that a check could not even read what it lacks; else null.
"""


def responses_schema(checked: Collection[str] = ()) -> pa.Schema:
    """Return the schema of responses with columns that answers are checked against.

    Args:
        checked: Some of `answer`, `constraints` and `tests`.
    """
    fields = [pa.field(name, pa.string()) for name in CHECKED_COLUMNS if name in checked]
    return pa.schema([*RESPONSES_SCHEMA, *fields])


def table_of(rows: Sequence[Mapping[str, Any]], schema: pa.Schema) -> pa.Table:
    """Return rows as a table; half a character, as of a path or a service, becomes its code."""
    try:
        return pa.Table.from_pylist(rows, schema=schema)
    except UnicodeEncodeError:
        return pa.Table.from_pylist([_encodable(row) for row in rows], schema=schema)


def _encodable(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: value.encode(errors="backslashreplace").decode() if isinstance(value, str) else value
        for name, value in row.items()
    }


def read_table(
    path: str | Path,
    schema: pa.Schema | None = None,
    *,
    columns: Sequence[str] | None = None,
    repeating: Sequence[str] = (),
) -> pa.Table:
    """Read a Parquet file.

    Args:
        path: The file.
        schema: Columns and types that it must have, in this order; None takes what is there.
        columns: Read those of these alone that are there.
        repeating: Columns of few different texts: each text is held once.
            Responses may have columns that answers are checked against, beside these.

    Returns:
        The table.

    Raises:
        TableError: The file is missing, not Parquet, has other columns, or two of one name.
    """
    path = Path(path)
    _require_file(path)
    try:
        names = pq.read_schema(path).names
        require_single_columns(names, path)
        there = set(names)
        wanted = None if columns is None else [name for name in columns if name in there]
        few = [name for name in repeating if name in there]
        with pq.ParquetFile(path, read_dictionary=few) as file:
            table = file.read(wanted)
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(path, error) from error
    if schema is not None:
        table = with_later_columns(table, schema)
        _require_equal(path, table.schema, schema)
    return table


def with_later_columns(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Return a table with columns that are newer than it is, null throughout."""
    for index, field in enumerate(schema):
        if field.name in _LATER_COLUMNS and field.name not in table.column_names:
            place = min(index, table.num_columns)
            table = table.add_column(place, field, pa.nulls(table.num_rows, field.type))
    return table


def require_schema(path: str | Path, schema: pa.Schema) -> pa.Schema:
    """Return the schema of a Parquet file, metadata included, from its footer alone.

    Raises:
        TableError: The file is missing, not Parquet, or has other columns.
    """
    path = Path(path)
    _require_file(path)
    try:
        found = pq.read_schema(path)
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(path, error) from error
    whole = with_later_columns(found.empty_table(), schema)
    _require_equal(path, whole.schema, schema)
    return found


def require_single_columns(names: Sequence[str], where: object) -> None:
    """Check that no two columns of a table have one name.

    Raises:
        TableError: They have: only one of them could be read.
    """
    twice = [name for name, number in Counter(names).items() if number > 1]
    if twice:
        raise TableError(
            "two columns have one name",
            where=where,
            got=first_names(twice),
            expected="a name for each column",
            hint="rename or remove one of them",
        )


def _require_file(path: Path) -> None:
    if not path.is_file():
        raise TableError("the table does not exist", where=path)


def _require_equal(path: Path, found: pa.Schema, expected: pa.Schema) -> None:
    if expected is RESPONSES_SCHEMA:  # whoever writes some of these columns asks for just them
        expected = responses_schema(found.names)
    if not found.equals(expected):
        raise TableError(
            "the table has other columns than expected",
            where=path,
            got=_columns(found),
            expected=_columns(expected),
        )


def _unreadable(path: Path, error: Exception) -> TableError:
    return TableError("the table is not readable as Parquet", where=path, got=error)


def _columns(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name}: {field.type}" for field in schema)
