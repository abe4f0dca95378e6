"""Logs of other harnesses: lm-evaluation-harness, inspect, AlpacaEval.

They are read as they are written by `--log_samples`, by `inspect log convert --to json` (or
INSPECT_LOG_FORMAT=json) and by `alpaca_eval`; nothing of these packages is imported.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from expo_ray.errors import TableError
from expo_ray.evaluation.results import Results, Row, cluster_name, collect, item_name
from expo_ray.evaluation.scores import choose_metric, score_of
from expo_ray.json_text import parse_json

_SAMPLES = re.compile(r"samples_(?P<task>.+?)(?:_\d{4}-\d{2}-\d{2}T[\d.-]+)?\.jsonl")
_NO_METRICS = frozenset(
    {
        *("doc_id", "doc", "target", "arguments", "resps", "filtered_resps", "filter", "metrics"),
        *("doc_hash", "prompt_hash", "target_hash", "task", "raw_resps"),
    }
)
_DAMAGED = "the file is damaged, or holds something else too: log the samples anew"
# As inspect turns its letters into numbers: correct, partially, incorrect, no answer.
_LETTERS = {"C": 1.0, "P": 0.5, "I": 0.0, "N": 0.0}


def is_harness_row(row: Mapping[str, Any]) -> bool:
    """Return whether a line is a sample of lm-evaluation-harness."""
    return {"doc_id", "doc"} <= row.keys()


def read_harness(
    files: Sequence[tuple[Path, Sequence[Mapping[str, Any]]]],
    where: str,
    *,
    metric: str | None,
    cluster: str | None,
) -> Results:
    """Read samples of lm-evaluation-harness, one file per task.

    Args:
        files: Each with its lines.
        where: Address as given.
        metric: Its name, with `,FILTER` where answers were filtered in several ways.
        cluster: Field of the documents that tells which of them belong together.

    Raises:
        TableError: A task is there twice, a line is malformed, or the metric is not one.
    """
    _require_one_each([(_task_of(path), path) for path, _ in files], where)
    items = {
        path: [
            item_name(line, "doc_id", f"{path} line {number + 1}", hint=_DAMAGED)
            for number, line in enumerate(lines)
        ]
        for path, lines in files
    }
    metrics = {
        _task_of(path): choose_metric(
            metric, sorted({name for row in rows for name in _metrics(row)}), str(path)
        )
        for path, rows in files
    }

    def rows() -> Iterator[Row]:
        for path, lines in files:
            name, _, wanted = metrics[_task_of(path)].rpartition(",")
            for number, line in enumerate(lines):
                if line.get("filter", "none") != wanted:
                    continue
                place = f"{path} line {number + 1}"
                doc = line.get("doc")
                yield Row(
                    task=_task_of(path),
                    item=items[path][number],
                    sample="0",
                    score=score_of(line.get(name), place),
                    content=line.get("doc_hash") or json.dumps(doc, sort_keys=True, default=str),
                    cluster=cluster_name(doc, cluster, place),
                    prompt=line.get("prompt_hash"),
                )

    return collect(rows(), where=where, kind="lm-evaluation-harness", model=where, metric=metrics)


def _metrics(row: Mapping[str, Any]) -> list[str]:
    """Return the metrics of a line, each with its filter."""
    given = row.get("metrics")
    names = given if isinstance(given, list) else [n for n in row if n not in _NO_METRICS]
    filter_name = row.get("filter", "none")
    return [f"{name},{filter_name}" for name in names if isinstance(name, str)]


def _task_of(path: Path) -> str:
    found = _SAMPLES.fullmatch(path.name)
    return found["task"] if found else ""


def _require_one_each(files: Sequence[tuple[str, Path]], where: str) -> None:
    known: dict[str, Path] = {}
    for task, path in files:
        if task in known:
            raise TableError(
                "a task is there twice",
                where=where,
                got=f"{known[task].name} and {path.name}",
                hint="give one file, or a folder with one file per task",
            )
        known[task] = path


def is_inspect_log(value: object) -> bool:
    """Return whether a JSON document is a log of inspect."""
    return isinstance(value, dict) and "status" in value and isinstance(value.get("eval"), dict)


def read_inspect(
    logs: Sequence[tuple[Path, Mapping[str, Any]]],
    where: str,
    *,
    metric: str | None,
    cluster: str | None,
) -> Results:
    """Read logs of inspect in their JSON form, one per task.

    Args:
        logs: Each with its content.
        where: Address as given.
        metric: Name of the scorer, with `/KEY` where its score is a mapping.
        cluster: Key of the samples' metadata that tells which of them belong together.

    Raises:
        TableError: A log is unfinished or has no samples, or the metric is not one.
    """
    for path, log in logs:
        samples = log.get("samples") if isinstance(log.get("samples"), list) else None
        if log["status"] != "success" or not samples:
            raise TableError(
                "the evaluation did not finish, or its log has no samples",
                where=path,
                got=f"status {log['status']}, {len(samples or ())} samples",
                expected="status success, with samples",
            )
        for number, sample in enumerate(samples):
            item_name(sample, "id", f"{path} sample {number + 1}", hint=_DAMAGED)
    of = {path: str(log["eval"].get("task", "")) for path, log in logs}
    _require_one_each([(task, path) for path, task in of.items()], where)
    metrics = {
        of[path]: choose_metric(
            metric,
            sorted({name for sample in log["samples"] for name in _scores(sample)}),
            str(path),
        )
        for path, log in logs
    }

    def rows() -> Iterator[Row]:
        for path, sample in ((path, sample) for path, log in logs for sample in log["samples"]):
            place = f"{path} sample {sample.get('id')}"
            value = _scores(sample).get(metrics[of[path]])
            value = _LETTERS.get(value, value) if isinstance(value, str) else value
            asked = {key: sample.get(key) for key in ("input", "target")}
            yield Row(
                task=of[path],
                item=str(sample["id"]),
                sample=str(sample.get("epoch", 1)),
                score=None if sample.get("error") else score_of(value, place),
                content=json.dumps(_without_ids(asked), sort_keys=True, default=str),
                cluster=cluster_name(sample.get("metadata"), cluster, place),
            )

    models = sorted({str(log["eval"].get("model", where)) for _, log in logs})
    return collect(rows(), where=where, kind="inspect", model=", ".join(models), metric=metrics)


def _scores(sample: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of all scorers of a sample, those of mappings apart."""
    found: dict[str, Any] = {}
    for name, score in (sample.get("scores") or {}).items():
        value = score.get("value") if isinstance(score, dict) else score
        if isinstance(value, dict):
            found.update({f"{name}/{key}": inner for key, inner in value.items()})
        else:
            found[name] = value
    return found


def _without_ids(value: Any) -> Any:
    """Leave out the ids that inspect gives to messages, new ones in each run."""
    if isinstance(value, dict):
        return {key: _without_ids(inner) for key, inner in value.items() if key != "id"}
    return [_without_ids(inner) for inner in value] if isinstance(value, list) else value


def read_annotations(
    path: Path,
    found: Sequence[Mapping[str, Any]],
    where: str,
    *,
    metric: str | None,
    cluster: str | None,
) -> Results:
    """Read AlpacaEval's annotations: 1 where the model won, 0 where the baseline did.

    Args:
        path: The file, for errors.
        found: Its annotations.
        where: Address as given.
        metric: `preference`, the only one there is; None means it too.
        cluster: Field of the annotations that tells which of them belong together.

    Raises:
        TableError: An annotation is malformed, they are of several models or judges, or the metric
            is another one.
    """
    from expo_ray.evaluation.alpaca_eval import annotated_preference, one_name

    chosen = choose_metric(metric, ["preference"], where)

    def rows() -> Iterator[Row]:
        for number, row in enumerate(found):
            place = f"{path} row {number}"
            given = annotated_preference(row, place)
            yield Row(
                task="",
                item=item_name(row, "instruction", place, hint="annotate the answers anew"),
                sample="0",
                score=None if given is None else given - 1,
                cluster=cluster_name(row, cluster, place),
            )

    judge = [one_name(found, key, path) for key in ("annotator", "generator_1")]
    return collect(
        rows(),
        where=where,
        kind="AlpacaEval",
        model=one_name(found, "generator_2", path) or where,
        metric=chosen,
        judge=" against ".join(name or "unknown" for name in judge),
    )


def read_json_file(path: Path) -> Any:
    """Return a JSON document.

    Raises:
        TableError: It cannot be read, or is not JSON.
    """
    try:
        return parse_json(path.read_bytes())
    except OSError as error:
        raise TableError("the results cannot be read", where=path, got=error.strerror) from error
    except ValueError as error:
        raise TableError("the results are not JSON", where=path, got=error) from error
