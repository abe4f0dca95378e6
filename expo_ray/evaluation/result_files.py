"""Reading results: which kind of file it is, and the plain tables among them.

PATH[#SCORE]    a rewards or responses table of ours, samples of lm-evaluation-harness, logs of
                inspect in JSON, annotations of AlpacaEval; or any CSV, JSONL, JSON or Parquet
                with a row per item; or a folder with one such file per task
"""

from __future__ import annotations

import csv
import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from expo_ray.errors import TableError, argument, first_names
from expo_ray.evaluation.harness_logs import (
    is_harness_row,
    is_inspect_log,
    read_annotations,
    read_harness,
    read_inspect,
    read_json_file,
)
from expo_ray.evaluation.results import Results, Row, cluster_name, collect, item_name
from expo_ray.evaluation.scores import choose_metric, score_of
from expo_ray.json_text import parse_json
from expo_ray.tables import read_table
from expo_ray.tables.schemas import require_single_columns

ITEM_COLUMNS = ("prompt_id", "item_id", "item", "doc_id", "question_id", "id")
_SAMPLE_COLUMNS = ("sample", "epoch")
_OURS = frozenset({"prompt_id", "sample", "weights_digest", "alpha", "seed", "split"})
# A later time is no better answer.
_TIMES = {"tstamp", "timestamp", "time", "date", "created", "created_at"}
_NO_SCORES = {*ITEM_COLUMNS, *_SAMPLE_COLUMNS, *_OURS, *_TIMES, "task", "reward_model_revision"}
_SUFFIXES = (".csv", ".jsonl", ".json", ".parquet")
Lines = list[dict[str, Any]]


def read_results(
    address: str | Path,
    *,
    metric: str | None = None,
    item: str | None = None,
    cluster: str | None = None,
    rows_are_items: bool = False,
) -> Results:
    """Read the results of one model.

    Args:
        address: A file or a folder, perhaps with `#SCORE` behind it.
        metric: Name of the score, where the address names none.
        item: Column that names the items of a plain table; None takes a usual name.
        cluster: Column, field of a document or key of metadata that says which items belong
            together.
        rows_are_items: Whether a plain table without names of items may go by its rows' numbers.

    Raises:
        TableError: There is no such file, it is of no known kind, or malformed.
    """
    text = str(address)
    head, mark, tail = text.rpartition("#")
    path, metric = (Path(head), tail) if mark else (Path(text), metric)
    if not path.exists():
        raise TableError("there are no such results", where=path, hint="check the path")
    if path.is_dir():
        _refuse_item(item, path)
        return _read_folder(path, text, metric=metric, cluster=cluster)
    if path.suffix.lower() == ".json":
        found = read_json_file(path)
        if is_inspect_log(found):
            _refuse_item(item, path)
            return read_inspect([(path, found)], text, metric=metric, cluster=cluster)
        rows = _objects(found, path)
        if "preference" in rows[0] and "output_2" in rows[0]:
            _refuse_item(item, path)
            return read_annotations(path, rows, text, metric=metric, cluster=cluster)
    else:
        rows = _read_rows(path)
        if is_harness_row(rows[0]):
            _refuse_item(item, path)
            return read_harness([(path, rows)], text, metric=metric, cluster=cluster)
    return _plain(path, rows, text, metric=metric, item=item, cluster=cluster,
                  rows_are_items=rows_are_items)  # fmt: skip


def _refuse_item(item: str | None, path: Path) -> None:
    if item is not None:
        raise TableError(
            "logs and annotations name their items themselves",
            where=path,
            got=argument("item", item),
            hint=f"leave out {argument('item')}",
        )


def _read_folder(folder: Path, where: str, *, metric: str | None, cluster: str | None) -> Results:
    """Read the logs of several tasks; lm-evaluation-harness makes a folder for the model."""
    samples = sorted({*folder.glob("samples_*.jsonl"), *folder.glob("*/samples_*.jsonl")})
    if samples:
        files = [(path, _read_rows(path)) for path in samples]
        read = read_harness(files, where, metric=metric, cluster=cluster)
        return replace(read, skipped=_others(folder, (".jsonl", ".eval"), samples))
    logs = [(path, read_json_file(path)) for path in sorted(folder.glob("*.json"))]
    found = [(path, log) for path, log in logs if is_inspect_log(log)]
    if found:
        read = read_inspect(found, where, metric=metric, cluster=cluster)
        others = _others(folder, (".json", ".jsonl", ".eval"), [path for path, _ in found])
        return replace(read, skipped=others)
    raise TableError(
        "the folder holds no logs of a harness",
        where=folder,
        got=first_names(sorted(path.name for path in folder.iterdir())) or "nothing",
        expected="samples_*.jsonl of lm-evaluation-harness, or logs of inspect in JSON",
        hint="name one file",
    )


def _others(folder: Path, suffixes: Sequence[str], read: Sequence[Path]) -> tuple[str, ...]:
    found = (path for path in folder.iterdir() if path.suffix in suffixes and path not in read)
    return tuple(sorted(path.name for path in found))


def _read_rows(path: Path) -> Lines:
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        table = read_table(path)
        names = [n for n in table.column_names if n not in ("messages", "response")]
        return _some(table.select(names).to_pylist(), path)
    if suffix not in _SUFFIXES:
        raise TableError(
            "results of an unknown format",
            where=path,
            got=suffix or "no suffix",
            expected=", ".join(_SUFFIXES),
            hint="inspect log convert --to json writes a log that can be read"
            if suffix == ".eval"
            else None,
        )
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise TableError("the results cannot be read", where=path, got=error) from error
    if suffix == ".csv":
        return _some(list(_csv_rows(text, path)), path)
    return _some(list(_json_rows(text, path)), path)


def _csv_rows(text: str, path: Path) -> Iterator[dict[str, Any]]:
    reader = csv.DictReader(text.splitlines(keepends=True))
    require_single_columns(reader.fieldnames or (), path)
    for row in reader:
        if None in row or None in row.values():
            raise TableError(
                "a row has another number of fields than the header",
                where=f"{path} line {reader.line_num}",
            )
        yield dict(row)


def _json_rows(text: str, path: Path) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(text.splitlines()):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except ValueError as error:
            where = f"{path} line {number + 1}"
            raise TableError("the results are not JSON", where=where, got=error) from error
        yield from _objects([row], path)


def _objects(found: Any, path: Path) -> Lines:
    rows = found if isinstance(found, list) else []
    if not rows or not all(isinstance(row, dict) for row in rows):
        raise TableError(
            "the results are no list of objects",
            where=path,
            got=type(rows[0] if rows else found).__name__,
            expected="an object per item",
        )
    return rows


def _some(rows: Lines, path: Path) -> Lines:
    if not rows:
        raise TableError("the file holds no results", where=path)
    return rows


def _plain(
    path: Path,
    rows: Sequence[Mapping[str, Any]],
    where: str,
    *,
    metric: str | None,
    item: str | None,
    cluster: str | None,
    rows_are_items: bool,
) -> Results:
    """Read a table with a row per answer, among them those of ours."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    ours = set(columns) >= {"prompt_id", "sample", "weights_digest"}
    item = _item_column(columns, item, path, required=not rows_are_items)
    sample = next((name for name in _SAMPLE_COLUMNS if name in columns), None)
    if cluster is not None:
        _require_column(cluster, columns, path)
    if metric is None and ours and "reward" in columns:
        metric = "reward"
    numeric = [n for n in columns if n not in {*_NO_SCORES, item, cluster} and _is_numeric(n, rows)]
    chosen = choose_metric(metric, numeric, where)
    hint = f"fill it in, or name another column: {argument('item')}"
    about = _of_one_candidate(rows, columns, path) if ours else (where, None, None)

    def read() -> Iterator[Row]:
        for number, row in enumerate(rows):
            place = f"{path} row {number}"
            yield Row(
                task=str(row.get("task") or ""),
                item=str(number) if item is None else item_name(row, item, place, hint=hint),
                sample=str(row.get(sample)) if sample else "0",
                score=score_of(row.get(chosen), place),
                cluster=cluster_name(row, cluster, place),
            )

    kind = "expo-ray" if ours else "a table"
    model, judge, revision = about
    return collect(read(), where=where, kind=kind, model=model, metric=chosen, judge=judge,
                   revision=revision)  # fmt: skip


def _item_column(
    columns: Sequence[str], wanted: str | None, path: Path, *, required: bool
) -> str | None:
    if wanted is not None:
        _require_column(wanted, columns, path)
        return wanted
    found = next((name for name in ITEM_COLUMNS if name in columns), None)
    if found is None and required:
        raise TableError(
            "the rows do not say which item they are of",
            where=path,
            got=first_names(columns),
            expected=f"a column {', '.join(ITEM_COLUMNS[:-1])} or {ITEM_COLUMNS[-1]}",
            hint=f"name it: {argument('item', columns[0])}; rows of two files are not paired by "
            "their order",
        )
    return found


def _require_column(name: str, columns: Sequence[str], path: Path) -> None:
    if name not in columns:
        close = difflib.get_close_matches(name, columns, n=1)
        raise TableError(
            "the results have no such column",
            where=path,
            got=name,
            expected=f"one of {', '.join(columns)}",
            hint=f"did you mean {close[0]}?" if close else None,
        )


def _is_numeric(name: str, rows: Sequence[Mapping[str, Any]]) -> bool:
    try:
        found = [score_of(row.get(name), name) for row in rows]
    except TableError:
        return False
    return any(score is not None for score in found)


def _of_one_candidate(
    rows: Sequence[Mapping[str, Any]], columns: Sequence[str], path: Path
) -> tuple[str, str | None, str | None]:
    """Return who answered a table of ours, who judged it, and of which revision the judge was."""
    for name in ("weights_digest", "reward_model", "reward_model_revision"):
        values = sorted({str(row.get(name)) for row in rows}) if name in columns else []
        if len(values) > 1:
            raise TableError(
                "a table of several candidates or reward models is not one set of results",
                where=f"{path}, {name}",
                got=first_names(values),
                expected="one",
                hint="name the table of one alpha, such as rewards/0-rm/alpha-0.3.parquet",
            )
    first = rows[0]
    alpha = first.get("alpha")
    name = str(first.get("model") or "")
    label = name if alpha is None else f"{name} alpha {alpha:g}".strip()
    told = [first.get(key) for key in ("reward_model", "reward_model_revision")]
    judge, revision = (None if value is None else str(value) for value in told)
    return label or str(path), judge, revision
