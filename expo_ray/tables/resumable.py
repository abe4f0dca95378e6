"""A Parquet table that is written in durable pieces, so that a killed run continues.

Pieces lie in `TABLE.parts/` until `finish()` merges them into the one file. One writer at a time.
"""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from expo_ray.checkpoints import atomic_write_bytes
from expo_ray.errors import ConfigError
from expo_ray.tables.schemas import read_table, table_of

_IDENTITY = b"expo_ray.identity"

Key = tuple[Any, ...]
Row = dict[str, Any]


class TableLayout:
    """Where the pieces of a table lie, and what made their rows.

    Args:
        path: The file that the pieces end up in.
        schema: Its columns.
        identity: What made the rows, as plain JSON values.
    """

    def __init__(
        self, path: Path, schema: pa.Schema, identity: Mapping[str, object] | None
    ) -> None:
        self.parts_folder = path.with_name(f"{path.name}.parts")
        self._identity = json.dumps(identity or {}, sort_keys=True)
        self.schema = schema.with_metadata({_IDENTITY: self._identity.encode()})

    def check(self, file: Path, metadata: Mapping[bytes, bytes] | None) -> None:
        """Let a file pass whose rows were made alike.

        Raises:
            ConfigError: They were made under another identity.
        """
        made_by = (metadata or {}).get(_IDENTITY, b"{}").decode()
        if made_by != self._identity:
            raise ConfigError(
                "a table made under other settings is in the way",
                where=file,
                got=made_by,
                expected=self._identity,
                hint="give another output, or remove the old table",
            )


class ResumableTable:
    """Rows with unique keys, appended durably and merged in key order.

    Args:
        path: The Parquet file that `finish()` writes.
        schema: Its columns; a column `error` marks rows that a rerun may try again.
        key: The columns that name a row.
        identity: What made the rows (sampling parameters, reward model, ...), as plain JSON
            values. It is stored with the table; a table made under another one is refused.

    Raises:
        ConfigError: The table at `path` was made under another identity.
        TableError: The table at `path`, or a piece of it, is malformed.
    """

    def __init__(
        self,
        path: str | Path,
        schema: pa.Schema,
        *,
        key: Sequence[str],
        identity: Mapping[str, object] | None = None,
    ) -> None:
        self.path = Path(path)
        self._key = tuple(key)
        self._layout = TableLayout(self.path, schema, identity)
        self._schema, self._parts = self._layout.schema, self._layout.parts_folder
        self._rows: dict[Key, Row] = {}
        self._num_parts = 0
        self._merged = self.path.is_file()
        if self._merged:
            self._load(self.path)
        for part in sorted(self._parts.glob("*.parquet")):
            self._load(part)
            self._num_parts = int(part.stem) + 1
            self._merged = False

    @property
    def columns(self) -> list[str]:
        """The names of its columns."""
        return list(self._schema.names)

    @property
    def done(self) -> set[Key]:
        """Keys of the rows that need no more work: those without an error."""
        return {key for key, row in self._rows.items() if row.get("error") is None}

    @property
    def rows(self) -> list[Row]:
        """All rows so far, in key order."""
        return [self._rows[key] for key in sorted(self._rows)]

    def append(self, rows: Iterable[Row]) -> None:
        """Write rows; they are on disk when this returns. A later row replaces one of its key.

        Args:
            rows: One value per column of the schema, None included.

        Raises:
            ValueError: A row has other fields than the schema.
        """
        rows = list(rows)
        for row in rows:
            if row.keys() != set(self._schema.names):
                raise ValueError(f"fields differ: {sorted(row.keys() ^ set(self._schema.names))}")
        if not rows:
            return
        self._parts.mkdir(parents=True, exist_ok=True)
        self._write(self._parts / f"{self._num_parts:06d}.parquet", rows)
        self._num_parts += 1
        self._merged = False
        self._rows.update((self._key_of(row), row) for row in rows)

    def finish(self) -> pa.Table:
        """Merge everything into the one file, sorted by key, and remove the pieces.

        Returns:
            The table as it was written.
        """
        if not self._merged:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._write(self.path, self.rows)
            self._merged = True
        shutil.rmtree(self._parts, ignore_errors=True)
        return table_of(self.rows, self._schema)

    def _key_of(self, row: Row) -> Key:
        return tuple(row[name] for name in self._key)

    def _write(self, path: Path, rows: list[Row]) -> None:
        buffer = io.BytesIO()
        pq.write_table(table_of(rows, self._schema), buffer)
        atomic_write_bytes(path, buffer.getvalue())

    def _load(self, path: Path) -> None:
        table = read_table(path, self._schema)
        self._layout.check(path, table.schema.metadata)
        self._rows.update((self._key_of(row), row) for row in table.to_pylist())
