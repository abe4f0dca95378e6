import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from expo_ray.errors import ConfigError, TableError
from expo_ray.tables import ResumableTable
from expo_ray.tables.streamed import StreamedTable, key_digests, parquet_files

SCHEMA = pa.schema([("id", pa.string()), ("value", pa.float64()), ("error", pa.string())])


def rows(*ids: str, value: float = 1.0, error: str | None = None) -> pa.Table:
    return pa.Table.from_pylist(
        [{"id": i, "value": None if error else value, "error": error} for i in ids], schema=SCHEMA
    )


def open_table(path: Path, made_by: str = "x") -> StreamedTable:
    return StreamedTable(path, SCHEMA, key=["id"], identity={"made_by": made_by})


def test_a_killed_table_continues_and_the_last_row_of_a_key_stands(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    first = open_table(path)
    first.append(rows("a", "b"))
    first.append(rows("c", error="no answer"))
    again = open_table(path)
    done = again.done()
    known = np.isin(key_digests(rows("a", "b", "c", "d"), ["id"]), done)
    assert known.tolist() == [True, True, False, False]
    again.append(rows("c", "d", value=2.0))
    again.finish()
    assert [file.name for file in tmp_path.iterdir()] == ["t.parquet"]
    found = pq.read_table(path).to_pylist()
    assert [(r["id"], r["value"], r["error"]) for r in found] == [
        ("a", 1.0, None),
        ("b", 1.0, None),
        ("c", 2.0, None),
        ("d", 2.0, None),
    ]
    before = path.read_bytes()
    open_table(path).finish()
    assert path.read_bytes() == before, "a finished table stays as it is"
    later = open_table(path)
    later.append(rows("e"))
    later.finish()
    assert pq.read_table(path).num_rows == 5


def test_a_table_from_before_a_column_is_continued(tmp_path: Path) -> None:
    path, now = tmp_path / "t.parquet", pa.schema([*SCHEMA, ("unreadable", pa.string())])
    old = open_table(path)
    old.append(rows("a"))
    old.finish()
    again = StreamedTable(path, now, key=["id"], identity={"made_by": "x"})
    again.append(pa.Table.from_pylist([{"id": "b", "unreadable": "no number"}], schema=now))
    again.finish()
    assert pq.read_table(path)["unreadable"].to_pylist() == [None, "no number"]


def test_the_pieces_are_those_of_a_resumable_table(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    open_table(path).append(rows("b"))
    small = ResumableTable(path, SCHEMA, key=["id"], identity={"made_by": "x"})
    assert small.done == {("b",)}
    small.append(rows("a").to_pylist())
    large = open_table(path)
    assert len(large.done()) == 2
    large.finish()
    assert ResumableTable(path, SCHEMA, key=["id"], identity={"made_by": "x"}).done == {
        ("a",),
        ("b",),
    }
    with pytest.raises(ConfigError, match="other settings"):
        open_table(path, made_by="y")


def test_files_of_a_folder(tmp_path: Path) -> None:
    with pytest.raises(TableError, match="does not exist"):
        parquet_files(tmp_path)
    for name in ("b.parquet", "a.parquet", "notes.txt"):
        pq.write_table(rows(name), tmp_path / name)
    assert [file.name for file in parquet_files(tmp_path)] == ["a.parquet", "b.parquet"]


def peak_mib(path: Path, num_rows: int) -> float:
    """Write a table in a process of its own, twice; return the memory it took above its start."""
    code = f"""
import pyarrow as pa
from expo_ray.tables.streamed import StreamedTable
from tests.peak_memory import peak_bytes
schema = pa.schema([("id", pa.string()), ("text", pa.string()), ("error", pa.string())])
def rows(start, count):
    ids = [str(start + i) for i in range(count)]
    texts = [i * 40 for i in ids]
    columns = [pa.array(ids), pa.array(texts), pa.nulls(count, pa.string())]
    return pa.Table.from_arrays(columns, schema=schema)
warm = StreamedTable({str(path)!r} + "-warm", schema, key=["id"], identity={{}})
warm.append(rows(0, 2048)); warm.finish(); warm.done()
before = peak_bytes()
for half in range(2):
    table = StreamedTable({str(path)!r}, schema, key=["id"], identity={{}})
    assert len(table.done()) == half * {num_rows // 2}
    for start in range(half * {num_rows // 2}, (half + 1) * {num_rows // 2}, 2048):
        table.append(rows(start, min(2048, (half + 1) * {num_rows // 2} - start)))
    table.finish()
print((peak_bytes() - before) / 2**20)
"""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    return float(result.stdout)


def test_memory_grows_by_bytes_per_row_not_by_rows(tmp_path: Path) -> None:
    # 40,000 rows of 200 to 240 bytes of text.
    assert 0 < peak_mib(tmp_path / "t.parquet", 40_000) < 60
    assert pq.read_metadata(tmp_path / "t.parquet").num_rows == 40_000


@pytest.mark.slow
def test_a_million_rows_in_bounded_memory(tmp_path: Path) -> None:
    assert peak_mib(tmp_path / "t.parquet", 1_000_000) < 300
    assert pq.read_metadata(tmp_path / "t.parquet").num_rows == 1_000_000
