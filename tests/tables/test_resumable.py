from pathlib import Path

import pyarrow as pa
import pytest

from expo_ray.errors import ConfigError, TableError
from expo_ray.tables import REWARDS_SCHEMA, ResumableTable, read_table
from expo_ray.tables.schemas import table_of

KEY = ("prompt_id", "sample", "weights_digest")


def row(prompt_id: str, reward: float | None = 1.0, error: str | None = None) -> dict[str, object]:
    return {
        "prompt_id": prompt_id,
        "sample": 0,
        "split": "tuning",
        "alpha": None,
        "weights_digest": "d",
        "seed": 2**63 - 1,
        "reward": reward,
        "reward_model": "rm",
        "reward_model_revision": None,
        "tokens": 3,
        "truncated": False,
        "error": error,
        "unreadable": None,
    }


def open_table(path: Path, **identity: object) -> ResumableTable:
    return ResumableTable(path, REWARDS_SCHEMA, key=KEY, identity=identity)


def test_resumed_and_unresumed_tables_have_the_same_bytes(tmp_path: Path) -> None:
    whole = open_table(tmp_path / "whole.parquet")
    whole.append([row("c"), row("a"), row("b")])
    whole.finish()

    first = open_table(tmp_path / "x" / "resumed.parquet")
    first.append([row("b")])
    first.append([row("c", None, "timeout")])
    second = open_table(tmp_path / "x" / "resumed.parquet")
    assert second.done == {("b", 0, "d")}
    second.append([row("a"), row("c")])
    assert not second.path.exists()
    second.finish()

    assert second.path.read_bytes() == whole.path.read_bytes()
    assert [p.name for p in second.path.parent.iterdir()] == ["resumed.parquet"]
    table = read_table(second.path, REWARDS_SCHEMA)
    assert table.column("prompt_id").to_pylist() == ["a", "b", "c"]
    assert table.column("seed").to_pylist() == [2**63 - 1] * 3


def test_a_finished_table_is_done_and_can_grow(tmp_path: Path) -> None:
    table = open_table(tmp_path / "t.parquet")
    table.append([row("a"), row("b", None, "no")])
    table.finish()
    before = table.path.stat().st_mtime_ns
    again = open_table(tmp_path / "t.parquet")
    assert again.done == {("a", 0, "d")}
    again.finish()
    assert table.path.stat().st_mtime_ns == before
    again.append([row("b", 2.0)])
    assert again.finish().column("reward").to_pylist() == [1.0, 2.0]


def test_an_interrupted_append_leaves_the_earlier_rows(tmp_path: Path) -> None:
    table = open_table(tmp_path / "t.parquet")
    table.append([row("a")])
    (tmp_path / "t.parquet.parts" / ".000001.parquet.tmp").write_bytes(b"half")
    assert open_table(tmp_path / "t.parquet").done == {("a", 0, "d")}


def test_other_settings_and_other_columns_are_refused(tmp_path: Path) -> None:
    table = open_table(tmp_path / "t.parquet", temperature=0.7)
    table.append([row("a")])
    for finish in (False, True):
        if finish:
            table.finish()
        with pytest.raises(ConfigError, match="other settings"):
            open_table(tmp_path / "t.parquet", temperature=0.8)
    with pytest.raises(TableError, match="other columns"):
        ResumableTable(tmp_path / "t.parquet", REWARDS_SCHEMA.remove(0), key=KEY[1:])
    with pytest.raises(ValueError, match="error"):
        table.append([{k: v for k, v in row("z").items() if k != "error"}])


def test_half_a_character_is_written_as_its_code() -> None:
    schema = pa.schema([("id", pa.int64()), ("model", pa.string())])
    rows = [{"id": 1, "model": "caf\udce9"}, {"id": 2, "model": None}]
    assert table_of(rows, schema)["model"].to_pylist() == ["caf\\udce9", None]
