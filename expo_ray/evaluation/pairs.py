"""Whether two sets of results can be paired, and which of their items belong together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from expo_ray.errors import ConfigError, TableError, argument, first_names
from expo_ray.evaluation.results import Results, TaskResults

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


def require_share(name: str, value: float) -> None:
    """Check a confidence or a power.

    Raises:
        ConfigError: It is out of range.
    """
    if not 0.5 <= value < 1:
        raise ConfigError(
            "out of range", where=argument(name), got=value, expected="0.5 to below 1"
        )


def require_metric_used(metric: str | None, addresses: Sequence[str | Path]) -> None:
    """Check that a metric is not asked for where every address names its own.

    Raises:
        ConfigError: It is.
    """
    if metric is not None and all("#" in str(address) for address in addresses):
        raise ConfigError(
            "every address names its score already",
            where=argument("metric", metric),
            got=" and ".join(map(str, addresses)),
            expected="a score in one place",
            hint=f"leave out {argument('metric')}, or what stands behind #",
        )


def warn_of_skipped(results: Sequence[Results]) -> list[str]:
    """Return a sentence for each folder in which files were left that look like results."""
    return [
        f"{one.where}: {first_names(one.skipped)} not read: no log of {one.kind}"
        for one in results
        if one.skipped
    ]


def is_same_file(a: str | Path, b: str | Path) -> bool:
    """Return whether two addresses name scores of one file, whose rows are paired as they stand."""
    heads = [str(x).rpartition("#")[0] or str(x) for x in (a, b)]
    return Path(heads[0]).resolve() == Path(heads[1]).resolve()


def require_same(a: Results, b: Results, *, same_file: bool) -> None:
    """Check that two sets of results can be paired.

    Raises:
        TableError: They cannot.
    """
    where = f"{a.where} and {b.where}"
    if same_file and a.metrics == b.metrics:
        raise TableError(
            "both sides are the same results",
            where=where,
            hint="two columns of one file are named FILE#COLUMN",
        )
    for what, one, other in (
        ("kinds", a.kind, b.kind),
        ("judges", a.judge, b.judge),
        ("revisions of the judge", a.revision, b.revision),
    ):
        if one != other:
            raise TableError(
                f"results of different {what} cannot be paired",
                where=where,
                got=f"{one} and {other}",
            )
    if a.tasks.keys() != b.tasks.keys():
        alone = sorted(a.tasks.keys() ^ b.tasks.keys())
        raise TableError(
            "the two hold different tasks",
            where=where,
            got=f"on one side alone: {first_names(alone)}",
            expected="the same tasks",
        )
    for task, metric in a.metrics.items():
        if not same_file and metric != b.metrics[task] and "#" not in a.where + b.where:
            raise TableError(
                "the two are scored by different metrics",
                where=where,
                got=f"{metric} and {b.metrics[task]}",
                hint=f"name one that both have: {argument('metric', metric)}",
            )
        _require_same_items(task, a.tasks[task], b.tasks[task], where)


def _require_same_items(task: str, a: TaskResults, b: TaskResults, where: str) -> None:
    place = f"{where}, task {task}" if task else where
    alone = [sorted(a.scores.keys() - b.scores.keys()), sorted(b.scores.keys() - a.scores.keys())]
    if any(alone):
        counts = [
            f"{len(names)} of {side} alone ({first_names(names)})"
            for names, side in zip(alone, "AB", strict=True)
            if names
        ]
        raise TableError(
            "the two hold different items",
            where=place,
            got=f"{'; '.join(counts)}; {len(a.scores.keys() & b.scores.keys())} in both",
            expected="the same items on both sides",
            hint="run both models on the same items, or leave out the others on both sides",
        )
    other = sorted(name for name in a.scores if a.contents[name] != b.contents[name])
    if other:
        raise TableError(
            "the same names stand for different items",
            where=place,
            got=f"{len(other)} of {len(a.scores)}: {first_names(other)}",
            expected="the same version of the task on both sides",
        )
    if moved := sorted(name for name in a.scores if a.clusters[name] != b.clusters[name]):
        raise TableError("one item belongs to two documents", where=place, got=first_names(moved))


def cluster_numbers(names: Sequence[str | None]) -> IntArray | None:
    """Return the number of each item's document; None where none holds two."""
    if None in names or len(set(names)) == len(names):
        return None
    return np.unique(np.array(names, dtype=object).astype(str), return_inverse=True)[1]


def by_cluster(differences: FloatArray, clusters: IntArray | None) -> FloatArray:
    """Return one value per document whose mean is that of all items: the ratio, linearised."""
    if clusters is None:
        return differences
    mean = differences.mean()
    sums = np.bincount(clusters, weights=differences - mean)
    values: FloatArray = mean + sums * (sums.size / differences.size)
    return values
