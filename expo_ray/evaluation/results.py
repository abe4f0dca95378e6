"""Results of one model, item by item, whatever file they come from.

Readers (`result_files`, `harness_logs`) give rows; here rows become a set of results, and what
cannot be one is refused. What is done with two of them is in `comparison`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from expo_ray.errors import TableError, argument


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One score of one answer."""

    task: str
    """Empty where the file does not say."""
    item: str
    sample: str
    """Which of several answers to the item."""
    score: float | None
    """None where there is none: the answer or its judgement failed."""
    content: str | None = None
    """What the item is, where the file tells more than its name."""
    cluster: str | None = None
    """The document that it shares with others."""
    prompt: str | None = None
    """Hash of what the model was asked, where the file has one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskResults:
    """The results of one task."""

    scores: dict[str, list[float]] = field(default_factory=dict)
    """By item; empty where all are missing."""
    contents: dict[str, str | None] = field(default_factory=dict)
    clusters: dict[str, str | None] = field(default_factory=dict)
    prompts: dict[str, str | None] = field(default_factory=dict)

    @property
    def is_right_or_wrong(self) -> bool:
        """Whether every item has one score at most, and each is 0 or 1."""
        return all(len(found) <= 1 and set(found) <= {0.0, 1.0} for found in self.scores.values())


@dataclass(frozen=True, kw_only=True, slots=True)
class Results:
    """What one model reached, by task."""

    where: str
    """Address, as it was given."""
    kind: str
    """What wrote the file, in words."""
    model: str
    """Who answered, as far as the file says; else the address."""
    metrics: Mapping[str, str]
    """What the scores are, by task."""
    judge: str | None
    """What the scores are relative to: a reward model, an annotator and its baseline."""
    tasks: Mapping[str, TaskResults]
    revision: str | None = None
    """Of the judge, as far as the file says."""
    skipped: tuple[str, ...] = ()
    """Files of a folder that look like results and were not read."""


def collect(
    rows: Iterable[Row],
    *,
    where: str,
    kind: str,
    model: str,
    metric: str | Mapping[str, str],
    judge: str | None = None,
    revision: str | None = None,
) -> Results:
    """Sort rows into tasks and items.

    Args:
        rows: In any order.
        where: Address of the file, for errors.
        kind: What wrote it.
        model: Who answered.
        metric: What the scores are; by task, where tasks differ.
        judge: What they are relative to.
        revision: Of the judge.

    Raises:
        TableError: There are none, two rows are the same answer, or an item has two contents.
    """
    tasks: dict[str, TaskResults] = {}
    seen: set[tuple[str, str, str]] = set()
    for row in rows:
        task = tasks.setdefault(row.task, TaskResults())
        key = (row.task, row.item, row.sample)
        if key in seen:
            raise TableError(
                "two results for the same item",
                where=where,
                got=_name(row),
                expected="one per item, or a column `sample` that tells them apart",
            )
        seen.add(key)
        if task.contents.setdefault(row.item, row.content) != row.content:
            raise TableError("one item has two contents", where=where, got=_name(row))
        if task.clusters.setdefault(row.item, row.cluster) != row.cluster:
            raise TableError("one item belongs to two documents", where=where, got=_name(row))
        task.prompts.setdefault(row.item, row.prompt)
        scores = task.scores.setdefault(row.item, [])
        if row.score is not None:
            scores.append(row.score)
    if not seen:
        raise TableError("the file holds no results", where=where)
    metrics = dict.fromkeys(tasks, metric) if isinstance(metric, str) else metric
    return Results(where=where, kind=kind, model=model, metrics=metrics, judge=judge,
                   tasks=tasks, revision=revision)  # fmt: skip


def item_name(row: Any, key: str, where: str, *, hint: str | None = None) -> str:
    """Return the name of the item that a result is of.

    Args:
        row: The result; anything but a mapping has no name.
        key: Where the name stands.
        where: File and row, for errors.
        hint: The cure.

    Raises:
        TableError: The result does not say.
    """
    if not isinstance(row, Mapping) or _is_empty(row.get(key)):
        raise TableError(
            "a result does not say which item it is of",
            where=where,
            got=_found(row, key),
            expected=f"a name as {key!r}",
            hint=hint,
        )
    return str(row[key])


def cluster_name(source: Any, key: str | None, where: str) -> str | None:
    """Return the document that an item shares with others; None where none was asked for.

    Raises:
        TableError: The item does not say.
    """
    if key is None:
        return None
    if not isinstance(source, Mapping) or _is_empty(source.get(key)):
        raise TableError(
            "an item does not say to which document it belongs",
            where=where,
            got=_found(source, key),
            expected=f"a name as {key!r}",
            hint="items without one are not of one document: give each its own, or leave out "
            f"{argument('cluster')}",
        )
    return str(source[key])


def _is_empty(value: object) -> bool:
    """Return whether a name is none: what is not there, blank, or a gap of a table of numbers."""
    return value is None or (isinstance(value, str) and not value.strip()) or value != value


def _found(source: Any, key: str) -> str:
    if not isinstance(source, Mapping):
        return "no fields"
    return repr(source[key]) if key in source else ", ".join(source) or "no fields"


def _name(row: Row) -> str:
    task = f"task {row.task!r}, " if row.task else ""
    return f"{task}item {row.item!r}, sample {row.sample}"
