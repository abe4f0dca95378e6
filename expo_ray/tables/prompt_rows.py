"""Rows of a file of prompts, format by format: JSONL, JSON, Parquet, CSV.

What a row must hold is not known here.
"""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Iterator
from typing import Any

from expo_ray.errors import TableError
from expo_ray.json_text import parse_json
from expo_ray.tables.prompt_files import PromptFile
from expo_ray.tables.schemas import require_single_columns

Row = tuple[str, object]
"""(where the row is, for messages: `FILE:LINE` or `FILE row N`; its parsed value)"""


def read_rows(file: PromptFile) -> Iterator[Row]:
    """Yield the rows of a file.

    Raises:
        TableError: The file is missing or malformed.
    """
    readers = {".parquet": _parquet_rows, ".csv": _csv_rows, ".json": _json_rows}
    return readers.get(file.suffix, _jsonl_rows)(file)


def _read_text(file: PromptFile) -> str:
    data = file.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise TableError(
            "the file is not UTF-8 text",
            where=f"{file.where}:{line}",
            got=f"byte {data[error.start]:#04x}",
            expected="UTF-8",
            hint="convert it, for example by iconv -t utf-8; Parquet ends in .parquet",
        ) from error


def _jsonl_rows(file: PromptFile) -> Iterator[Row]:
    # Not splitlines(): U+2028 and its kin may stand unescaped inside a JSON string.
    for number, line in enumerate(_read_text(file).split("\n"), start=1):
        if line.strip():
            yield f"{file.where}:{number}", _parse_json(line, where=f"{file.where}:{number}")


def _json_rows(file: PromptFile) -> Iterator[Row]:
    text = _read_text(file)
    if not text.strip():
        return
    try:
        document = parse_json(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":  # several documents: JSONL under another suffix
            yield from _jsonl_rows(file)
            return
        raise TableError(
            "malformed JSON",
            where=f"{file.where}:{error.lineno}",
            got=error.msg,
            expected="one JSON document; one object a line goes into a .jsonl file",
        ) from error
    except ValueError as error:
        raise TableError("malformed JSON", where=file.where, got=error) from error
    if isinstance(document, dict) and isinstance(document.get("data"), list):
        document = document["data"]
    for index, value in enumerate(document if isinstance(document, list) else [document]):
        yield f"{file.where} row {index}", value


def _parquet_rows(file: PromptFile) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    index = 0
    try:
        with pq.ParquetFile(pa.BufferReader(file.read_bytes())) as parquet:
            require_single_columns(parquet.schema_arrow.names, file.where)
            for batch in parquet.iter_batches():
                for value in _values(batch, f"{file.where} row", index):
                    yield f"{file.where} row {index}", value
                    index += 1
    except (pa.ArrowException, OSError) as error:
        raise TableError(
            "the table is not readable as Parquet",
            where=file.where,
            got=error,
            hint="is the file whole, and its suffix right?",
        ) from error


def _values(batch: Any, where: str, first: int) -> list[dict[str, Any]]:
    try:
        rows: list[dict[str, Any]] = batch.to_pylist(maps_as_pydicts="strict")
    except (ValueError, KeyError, OverflowError) as error:
        if batch.num_rows == 1:
            raise TableError(
                "a value of a row cannot be read",
                where=f"{where} {first}",
                got=error,
                expected="text in UTF-8, dates and numbers in range, no key of a map twice",
            ) from error
        half = batch.num_rows // 2
        rows = _values(batch[:half], where, first) + _values(batch[half:], where, first + half)
    return rows


def _csv_rows(file: PromptFile) -> Iterator[Row]:
    csv.field_size_limit(sys.maxsize)  # the default refuses prompts above 128 KiB
    reader = csv.DictReader(io.StringIO(_read_text(file), newline=""), strict=True)
    try:
        require_single_columns(reader.fieldnames or (), file.where)
        for row in reader:
            where = f"{file.where}:{reader.line_num}"
            if None in row or None in row.values():
                raise TableError(
                    "a CSV row has another number of fields than the header",
                    where=where,
                    got=_num_fields(row),
                    expected=len(reader.fieldnames or ()),
                    hint="quote fields that hold commas, quotes or line breaks",
                )
            # CSV knows no null: an empty field means that the column is not used.
            value: dict[str, object] = {key: text or None for key, text in row.items()}
            yield where, value
    except csv.Error as error:
        raise TableError(
            "malformed CSV",
            where=f"{file.where}:{reader.reader.line_num}",
            got=error,
            hint="quote fields that hold commas, quotes or line breaks",
        ) from error


def _num_fields(row: dict[str | Any, str | Any]) -> int:
    # The reader collects what is too much under None, and fills up what is missing with None.
    return sum(value is not None for key, value in row.items() if key) + len(row.get(None, ()))


def _parse_json(text: str, *, where: str) -> object:
    try:
        value: object = parse_json(text)
    except ValueError as error:
        raise TableError(
            "malformed JSON",
            where=where,
            got=error,
            expected='one object a line: {"prompt": "..."}',
        ) from error
    return value
