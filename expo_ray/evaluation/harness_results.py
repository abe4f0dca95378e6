"""Result files of lm-evaluation-harness, of before version 0.4 and since, as one kind of row.

    before   {"results": {TASK: {"acc": ..., "acc_stderr": ...}}, "config": {"num_fewshot": 5}}
    since    {"results": {TASK: {"acc,none": ..., "acc_stderr,none": ...}}, "n-shot": {TASK: 5}}

A score keeps its name; what stands behind its comma is the filter of the answers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from expo_ray.errors import TableError
from expo_ray.evaluation.harness_logs import read_json_file

_ERROR = "_stderr"
_NO_SCORES = frozenset({"alias", "sample_len", "name"})


@dataclass(frozen=True, kw_only=True, slots=True)
class HarnessScore:
    """One score of one task."""

    value: float
    standard_error: float | None
    """None where the harness gave none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HarnessTask:
    """What one file says of one task."""

    name: str
    file: Path
    scores: Mapping[str, HarnessScore]
    """By name: `acc`, `acc_norm`, or `exact_match,strict-match` where answers were filtered."""
    num_shots: int | None
    version: str | None
    limit: float | None
    """How many of its documents were asked, where not all."""
    parts: tuple[str, ...] = ()
    """Of a group: the tasks and groups that it is made of."""


def read_harness_results(path: str | Path) -> dict[str, HarnessTask]:
    """Read a result file, or all that lie in a folder.

    Args:
        path: A JSON file; or a folder with such files in it, or in folders of it.

    Returns:
        The tasks by their name, groups of tasks among them.

    Raises:
        TableError: There are none, one is malformed, or a task is there twice.
    """
    path = Path(path)
    if not path.exists():
        raise TableError("there are no such results", where=path, hint="check the path")
    files = sorted(path.rglob("*.json")) if path.is_dir() else [path]
    found: dict[str, HarnessTask] = {}
    for file in files:
        document = read_json_file(file)
        results = document.get("results") if isinstance(document, dict) else None
        if not isinstance(results, Mapping):
            if not path.is_dir():
                raise TableError(
                    "the file holds no results of lm-evaluation-harness",
                    where=file,
                    expected='an object with "results"',
                )
            continue
        for task in _tasks(document, file):
            if task.name in found:
                raise TableError(
                    "a task is there twice",
                    where=path,
                    got=f"{task.name} in {found[task.name].file} and {file}",
                    hint="name one file, or move the older one away",
                )
            found[task.name] = task
    if not found:
        raise TableError(
            "the folder holds no results of lm-evaluation-harness",
            where=path,
            expected='JSON files with "results", as --output_path writes them',
        )
    return found


def _tasks(document: Mapping[str, Any], file: Path) -> Iterator[HarnessTask]:
    config = document.get("config")
    config = config if isinstance(config, Mapping) else {}
    shots, versions, groups = (
        document.get(key) for key in ("n-shot", "versions", "group_subtasks")
    )
    for name, row in document["results"].items():
        if not isinstance(row, Mapping):
            raise TableError("a task's results are malformed", where=f"{file}, task {name!r}")
        scores = _scores(row, f"{file}, task {name!r}")
        if not scores:
            continue  # the heading of a group has an alias alone
        num_shots = shots.get(name) if isinstance(shots, Mapping) else config.get("num_fewshot")
        version = versions.get(name) if isinstance(versions, Mapping) else None
        parts = groups.get(name) if isinstance(groups, Mapping) else None
        limit = config.get("limit")
        yield HarnessTask(
            name=str(name),
            file=file,
            scores=scores,
            num_shots=num_shots if isinstance(num_shots, int) else None,
            version=None if version is None else str(version),
            limit=float(limit) if isinstance(limit, int | float) else None,
            parts=tuple(map(str, parts)) if isinstance(parts, list) else (),
        )


def _scores(row: Mapping[str, Any], where: str) -> dict[str, HarnessScore]:
    found = {}
    for key, value in row.items():
        name, _, kept = str(key).partition(",")
        if name.endswith(_ERROR) or name in _NO_SCORES:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue  # texts and lists are no scores
        if not math.isfinite(value):
            raise TableError("a score is not finite", where=where, got=f"{key}: {value}")
        error = row.get(f"{name}{_ERROR},{kept}" if kept else f"{name}{_ERROR}")
        found[name if kept in ("", "none") else f"{name},{kept}"] = HarnessScore(
            value=float(value),
            # Without one the harness writes "N/A".
            standard_error=float(error)
            if isinstance(error, int | float) and math.isfinite(error)
            else None,
        )
    return found
