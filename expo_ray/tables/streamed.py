"""A table too large for memory: pieces are appended, rows are known by digests of their keys.

Pieces and final file are those of `ResumableTable`, so either can continue the other's work. Memory
is a few bytes per row; the final file is written batch by batch, in the order of arrival.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from expo_ray.errors import TableError
from expo_ray.tables.resumable import TableLayout
from expo_ray.tables.schemas import require_schema, with_later_columns

Digests = npt.NDArray[np.uint64]
_BATCH_ROWS = 8192


def parquet_files(path: str | Path) -> list[Path]:
    """Return the Parquet files of a table: the file itself, or those of a folder by name.

    Raises:
        TableError: There is none.
    """
    path = Path(path)
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if not files or not all(file.is_file() for file in files):
        raise TableError("the table does not exist", where=path, expected="Parquet")
    return files


def iter_batches(
    files: Iterable[Path], columns: Sequence[str] | None = None
) -> Iterator[pa.RecordBatch]:
    """Yield the rows of Parquet files, some thousands at a time.

    Raises:
        TableError: A file is not readable as Parquet.
    """
    for file in files:
        try:
            with pq.ParquetFile(file) as parquet:
                yield from parquet.iter_batches(_BATCH_ROWS, columns=columns)
        except (pa.ArrowException, OSError) as error:
            raise TableError(
                "the table is not readable as Parquet", where=file, got=error
            ) from error


def key_digests(rows: pa.RecordBatch | pa.Table, key: Sequence[str]) -> Digests:
    """Return eight bytes for the key of each row; among a million, two clash once in 10 million."""
    columns = [rows.column(name).to_pylist() for name in key]
    digests = [
        hashlib.blake2b(repr(values).encode(), digest_size=8).digest()
        for values in zip(*columns, strict=True)
    ]
    return np.frombuffer(b"".join(digests), dtype=np.uint64)


class StreamedTable:
    """Rows with unique keys, appended durably and merged in order of arrival.

    Args:
        path: The Parquet file that `finish()` writes.
        schema: Its columns, `error` among them.
        key: The columns that name a row.
        identity: What made the rows; a table made under another one is refused.

    Raises:
        ConfigError: The table at `path` was made under another identity.
        TableError: The table at `path`, or a piece of it, is malformed.
    """

    def __init__(
        self, path: str | Path, schema: pa.Schema, *, key: Sequence[str], identity: dict[str, Any]
    ) -> None:
        self.path = Path(path)
        self._key = tuple(key)
        layout = TableLayout(self.path, schema, identity)
        self._schema, self._parts = layout.schema, layout.parts_folder
        pieces = sorted(self._parts.glob("*.parquet"))
        self._num_parts = int(pieces[-1].stem) + 1 if pieces else 0
        self._fresh = not pieces and self.path.is_file()
        for file in self._sources():
            layout.check(file, require_schema(file, schema).metadata)

    def done(self) -> Digests:
        """Return digests of the rows that need no more work: those without an error, ascending."""
        found = [
            key_digests(batch.filter(batch.column("error").is_null()), self._key)
            for batch in iter_batches(self._sources(), [*self._key, "error"])
        ]
        return np.unique(np.concatenate(found)) if found else np.array([], dtype=np.uint64)

    def append(self, rows: pa.Table) -> None:
        """Write rows; they are on disk when this returns. A later row replaces one of its key."""
        if rows.num_rows:
            self._parts.mkdir(parents=True, exist_ok=True)
            self._write(self._parts / f"{self._num_parts:06d}.parquet", rows.to_batches())
            self._num_parts += 1
            self._fresh = False

    def finish(self) -> None:
        """Merge everything into the one file and remove the pieces."""
        if not self._fresh:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._write(self.path, self._latest())
        shutil.rmtree(self._parts, ignore_errors=True)

    def _sources(self) -> list[Path]:
        merged = [self.path] if self.path.is_file() else []
        return [*merged, *sorted(self._parts.glob("*.parquet"))]

    def _latest(self) -> Iterator[pa.RecordBatch]:
        sources = self._sources()
        digests = [key_digests(batch, self._key) for batch in iter_batches(sources, self._key)]
        backwards = np.concatenate([*digests, np.array([], dtype=np.uint64)])[::-1]
        keep = np.zeros(len(backwards), dtype=bool)
        keep[len(backwards) - 1 - np.unique(backwards, return_index=True)[1]] = True
        start = 0
        for batch in iter_batches(sources):
            whole = with_later_columns(pa.Table.from_batches([batch]), self._schema)
            yield from whole.filter(pa.array(keep[start : start + batch.num_rows])).to_batches()
            start += batch.num_rows

    def _write(self, path: Path, batches: Iterable[pa.RecordBatch]) -> None:
        temporary = path.with_name(f".{path.name}.tmp")
        with temporary.open("wb") as file:
            with pq.ParquetWriter(file, self._schema) as writer:
                for batch in batches:
                    writer.write_batch(batch.replace_schema_metadata(self._schema.metadata))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
