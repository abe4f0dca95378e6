"""Two models on the same items: what the pairs say that two means do not.

    right or wrong, one answer per item    McNemar's exact test; Tango's interval
    scores, several answers, documents     paired bootstrap over items, or over documents

Items that share a document are no independent witnesses: each document counts by the sum of its
items' departures from the mean, so that intervals are as wide as so many documents make them.
Holm's correction allows for the number of tasks. Positive differences speak for the second model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from expo_ray.errors import TableError, argument
from expo_ray.evaluation.pairs import (
    by_cluster,
    cluster_numbers,
    is_same_file,
    require_metric_used,
    require_same,
    require_share,
    warn_of_skipped,
)
from expo_ray.evaluation.result_files import read_results
from expo_ray.evaluation.results import Results, TaskResults
from expo_ray.evaluation.scores import is_less_better
from expo_ray.selection.bootstrap import FloatArray, adjust_p_values, bootstrap_mean
from expo_ray.selection.paired_proportions import (
    difference_interval,
    mcnemar_p_value,
    odds_of_change,
)
from expo_ray.selection.sample_size import detectable_difference, prompts_for_gain

SCHEMA_VERSION = 1
BETTER, WORSE, CANNOT_TELL = "better", "worse", "cannot-tell"
_MANY_MISSING = 0.01
_FEW_CLUSTERS = 30


@dataclass(frozen=True, kw_only=True, slots=True)
class Effect:
    """A size without the unit of the scores; None where it cannot be given or is infinite."""

    name: str
    value: float | None
    ci_low: float | None
    ci_high: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskComparison:
    """What one task says; differences are those of B over A."""

    task: str
    metric: str
    lower_is_better: bool
    """Whether lower scores are ahead; differences stay those of B over A."""
    test: str
    """`mcnemar` or `bootstrap`."""
    num_items: int
    """Scored on both sides."""
    num_missing: int
    """Left out, because a score is missing on one side."""
    num_other_prompts: int | None
    """Asked by another prompt on the two sides; None where the files do not say."""
    num_clusters: int | None
    """Documents; None where items stand for themselves."""
    mean_a: float
    mean_b: float
    difference: float
    ci_low: float | None
    ci_high: float | None
    gained: int
    """Items on which B is ahead."""
    lost: int
    """Items on which A is ahead."""
    effect: Effect
    p_value: float
    p_adjusted: float
    """By Holm, for the number of tasks."""
    unpaired_p_value: float
    """What two means and their standard errors alone would say; for comparison."""
    verdict: str
    """`better`, `worse` or `cannot-tell`, said of B."""
    detectable: float | None
    """True difference that so many items show with the power asked for."""
    num_items_for_difference: int | None
    """Items that a true difference as large as the one seen needs."""


def compare_results(
    a: str | Path,
    b: str | Path,
    *,
    metric: str | None = None,
    item: str | None = None,
    cluster: str | None = None,
    lower_is_better: bool | None = None,
    confidence: float = 0.95,
    power: float = 0.8,
    num_resamples: int = 10_000,
    seed: int = 42,
) -> dict[str, Any]:
    """Compare two sets of results on the same items.

    Args:
        a: Results of the first model, `PATH[#SCORE]`: a rewards or responses table, samples of
            lm-evaluation-harness, a log of inspect in JSON, annotations of AlpacaEval, or a CSV,
            JSONL, JSON or Parquet with a row per item; a folder of logs for several tasks.
        b: Results of the second one.
        metric: Name of the score, where a file has several and its address names none.
        item: Column of the items' names in a plain table.
        cluster: Column (field of the document, key of the metadata) that says which items belong
            together.
        lower_is_better: Whether lower scores are ahead, of all tasks; None decides by the metric's
            name: `wer`, `perplexity`, `loss` and their like are better low, all others high.
        confidence: Two-sided, of every interval; what a p-value must not exceed is 1 minus this.
        power: With which the detectable difference would be seen.
        num_resamples: Of the bootstrap.
        seed: Of the bootstrap.

    Returns:
        `{"schema_version", "a", "b", "tasks", "warnings", "settings"}`; a task has the fields of
        `TaskComparison`.

    Raises:
        ConfigError: A setting is out of range, or a metric has no effect.
        TableError: A file is malformed, or the two do not hold the same items, tasks and scores.
    """
    require_share("confidence", confidence)
    require_share("power", power)
    require_metric_used(metric, (a, b))
    same_file = is_same_file(a, b)
    both = [
        read_results(x, metric=metric, item=item, cluster=cluster, rows_are_items=same_file)
        for x in (a, b)
    ]
    require_same(*both, same_file=same_file)
    tasks = [
        _compare_task(name, *both, lower_is_better=lower_is_better,
                      confidence=confidence, power=power, num_resamples=num_resamples, seed=seed)
        for name in sorted(both[0].tasks)
    ]  # fmt: skip
    tasks = _correct(tasks, confidence)
    return {
        "schema_version": SCHEMA_VERSION,
        "a": _about(both[0]),
        "b": _about(both[1]),
        "tasks": [asdict(task) for task in tasks],
        "warnings": [
            *warn_of_skipped(both),
            *(text for task in tasks for text in _warnings(task)),
        ],
        "settings": {
            "confidence": confidence,
            "power": power,
            "cluster": cluster,
            "lower_is_better": lower_is_better,
            "num_resamples": num_resamples,
            "seed": seed,
        },
    }


def _about(results: Results) -> dict[str, Any]:
    return {
        "where": results.where,
        "model": results.model,
        "kind": results.kind,
        "judge": results.judge,
    }


def _compare_task(
    task: str,
    a: Results,
    b: Results,
    *,
    lower_is_better: bool | None,
    confidence: float,
    power: float,
    num_resamples: int,
    seed: int,
) -> TaskComparison:
    one, other = a.tasks[task], b.tasks[task]
    if lower_is_better is None:
        lower_is_better = _runs_down(task, a, b)
    names = sorted(name for name in one.scores if one.scores[name] and other.scores[name])
    if len(names) < 2:
        raise TableError(
            "fewer than two items have a score on both sides",
            where=f"{a.where} and {b.where}" + (f", task {task}" if task else ""),
            got=f"{len(names)} of {len(one.scores)}",
        )
    scores = np.array([[np.mean(x.scores[name]) for name in names] for x in (one, other)])
    differences = scores[1] - scores[0]
    clusters = cluster_numbers([one.clusters[name] for name in names])
    up, down = int((differences > 0).sum()), int((differences < 0).sum())
    gained, lost = (down, up) if lower_is_better else (up, down)
    n = len(names)
    estimate = bootstrap_mean(
        by_cluster(differences, clusters), num_resamples=num_resamples, seed=seed
    )
    if clusters is None and one.is_right_or_wrong and other.is_right_or_wrong:
        test, p_value = "mcnemar", mcnemar_p_value(gained, lost)
        low, high = difference_interval(up, down, n, confidence)
        effect = Effect(**dict(zip(("value", "ci_low", "ci_high"),
                                   odds_of_change(gained, lost, confidence), strict=True)),
                        name="odds ratio")  # fmt: skip
    else:
        test, p_value = "bootstrap", estimate.p_value()
        low, high = estimate.interval(confidence)  # type: ignore[assignment]
        effect = _standardised(differences, estimate.standard_error, confidence)
    error = estimate.standard_error
    mean = float(differences.mean())
    return TaskComparison(
        task=task,
        metric=a.metrics[task]
        if a.metrics[task] == b.metrics[task]
        else f"{a.metrics[task]} and {b.metrics[task]}",
        lower_is_better=lower_is_better,
        test=test,
        num_items=n,
        num_missing=len(one.scores) - n,
        num_other_prompts=_other_prompts(one, other, names),
        num_clusters=None if clusters is None else int(clusters.max()) + 1,
        mean_a=float(scores[0].mean()),
        mean_b=float(scores[1].mean()),
        difference=mean,
        ci_low=low,
        ci_high=high,
        gained=gained,
        lost=lost,
        effect=effect,
        p_value=p_value,
        p_adjusted=p_value,
        unpaired_p_value=_unpaired(scores),
        verdict=CANNOT_TELL,
        detectable=detectable_difference(error, power=power, confidence=confidence)
        if error
        else None,
        num_items_for_difference=prompts_for_gain(
            error**2 * n, mean, power=power, confidence=confidence
        )
        if error and mean
        else None,
    )


def _other_prompts(a: TaskResults, b: TaskResults, names: Sequence[str]) -> int | None:
    asked = [(a.prompts[name], b.prompts[name]) for name in names]
    known = [one != other for one, other in asked if one is not None and other is not None]
    return sum(known) if known else None


def _runs_down(task: str, a: Results, b: Results) -> bool:
    """Return whether less is better, by the metric's name."""
    known = [is_less_better(side.metrics[task]) for side in (a, b)]
    if known[0] != known[1]:
        raise TableError(
            "of one of the two scores less is better, of the other more",
            where=f"{a.where} and {b.where}" + (f", task {task}" if task else ""),
            got=f"{a.metrics[task]} and {b.metrics[task]}",
            expected="scores of one measure",
            hint=f"say which it is: {argument('lower_is_better', known[0])}",
        )
    return known[0]


def _standardised(differences: FloatArray, error: float, confidence: float) -> Effect:
    """Return the mean difference in units of its spread over items (Cohen's d of pairs)."""
    spread = float(differences.std(ddof=1))
    name = "standardised difference"
    if spread <= 1e-12:
        return Effect(name=name, value=None, ci_low=None, ci_high=None)
    size = float(differences.mean()) / spread
    # Error of the mean (clusters included) and of the spread itself.
    total = math.hypot(error / spread, size / math.sqrt(2 * differences.size))
    reach = float(stats.norm.ppf((1 + confidence) / 2)) * total
    return Effect(name=name, value=size, ci_low=size - reach, ci_high=size + reach)


def _unpaired(scores: FloatArray) -> float:
    """Return the p-value of a z-test on the two means, as if other items had been asked."""
    error = math.sqrt(float(scores.var(axis=1, ddof=1).sum()) / scores.shape[1])
    gap = float(scores[1].mean() - scores[0].mean())
    return float(2 * stats.norm.sf(abs(gap) / error)) if error else float(gap == 0)


def _correct(tasks: Sequence[TaskComparison], confidence: float) -> list[TaskComparison]:
    adjusted = adjust_p_values([task.p_value for task in tasks], "holm")
    return [
        replace(
            task,
            p_adjusted=p,
            verdict=CANNOT_TELL
            if p > 1 - confidence or not task.difference
            else (BETTER if (task.difference < 0) == task.lower_is_better else WORSE),
        )
        for task, p in zip(tasks, adjusted, strict=True)
    ]


def _warnings(task: TaskComparison) -> list[str]:
    name = f"{task.task}: " if task.task else ""
    found = []
    total = task.num_items + task.num_missing
    if task.num_missing > _MANY_MISSING * total:
        found.append(
            f"{name}{task.num_missing} of {total} items have no score on one side and are left "
            "out; answers do not fail at random"
        )
    if task.num_other_prompts:
        found.append(
            f"{name}{task.num_other_prompts} of {task.num_items} items were asked by another "
            "prompt on the two sides: the difference may come from examples or a chat template"
        )
    if task.num_clusters is not None and task.num_clusters < _FEW_CLUSTERS:
        found.append(
            f"{name}{task.num_clusters} documents are few: below {_FEW_CLUSTERS} the interval may "
            "be too short"
        )
    return found
