"""How many prompts and samples a question needs, before anything is generated.

The spread of one prompt's difference decides. It comes from a pilot of both models, from one
model's results and an assumed correlation, or from an assumed accuracy and correlation; which one
is said. A pilot's own spread is an estimate: what is planned with is its upper limit at 80%, or
half of all plans would be too small (Browne 1995, "On the use of a pilot sample for sample size
determination").
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from expo_ray.errors import ConfigError, TableError, argument
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
from expo_ray.selection.bootstrap import FloatArray
from expo_ray.selection.sample_size import (
    PUBLISHED_CORRELATION,
    PUBLISHED_SOURCE,
    UNKNOWN_ACCURACY,
    prompts_for_gain,
    prompts_for_margin,
    variance_of_pairs,
)

SCHEMA_VERSION = 1
SAMPLES = (1, 2, 4, 8)
_PILOT_CONFIDENCE = 0.8


@dataclass(frozen=True, kw_only=True, slots=True)
class Spread:
    """How far one prompt's difference scatters, and who says so."""

    task: str
    variance: float
    """Of the difference with one sample per prompt; what is planned with."""
    estimate: float
    """The same as the pilot has it; the variance itself where nothing was estimated."""
    within: float | None
    """The part that more samples per prompt average out; None where it is not known."""
    proportions: bool
    """Whether answers are right or wrong."""
    num_items: int | None
    """Of the pilot."""
    design_effect: float
    """Times as many items with one sample each, because some share a document."""
    source: str

    def at(self, num_samples: int) -> float:
        """Return the variance that a plan of so many samples per prompt allows for.

        What items of one document share stays, however many samples each has.
        """
        return self.variance * self.design_effect - (self.within or 0.0) * (1 - 1 / num_samples)


def plan_prompts(
    pilot: str | Path | None = None,
    other: str | Path | None = None,
    *,
    gain: float | None = None,
    margin: float | None = None,
    metric: str | None = None,
    item: str | None = None,
    cluster: str | None = None,
    accuracy: float | None = None,
    correlation: float | None = None,
    power: float = 0.8,
    confidence: float = 0.95,
) -> dict[str, Any]:
    """Say how many prompts show a gain, or that an equal model is no worse than a margin allows.

    Args:
        pilot: Results of one model on some prompts, as for `compare`.
        other: Those of another one on the same prompts.
        gain: True mean difference that shall be seen.
        margin: What may be lost; an equal model shall be told from one that loses so much.
        metric: Name of the score, where a file has several.
        item: Column of the items' names in a plain table.
        cluster: Column (field, key) that says which items belong together.
        accuracy: Expected share of right answers, without a pilot; None takes 0.5, the worst case.
        correlation: Of two models' answers to the same prompts, without results of both; None
            takes 0.5, the middle of what was published.
        power: Probability of the answer that is hoped for.
        confidence: Two-sided, of the interval that decides.

    Returns:
        `{"schema_version", "question", "spreads", "sizes", "warnings"}`; a size has `task`,
        `samples_per_prompt`, `num_prompts`, `num_answers` (of one model).

    Raises:
        ConfigError: Neither or both of gain and margin are given, or a setting is out of range.
        TableError: A file is malformed, or the two do not hold the same items.

    Example:
        >>> plan = expo_ray.plan_prompts(margin=0.02, accuracy=0.8, correlation=0.7)
        >>> plan["sizes"][0]["num_prompts"]
        1928
    """
    _require_question(gain, margin)
    require_share("power", power)
    require_share("confidence", confidence)
    warnings: list[str] = []
    if pilot is None:
        _require_unused(other=other, metric=metric, item=item, cluster=cluster)
        spreads = [_assumed(accuracy, correlation)]
    else:
        require_metric_used(metric, [path for path in (pilot, other) if path is not None])
        results = _read(pilot, other, metric=metric, item=item, cluster=cluster)
        warnings = warn_of_skipped(results)
        spreads = _measured(results, accuracy, correlation)
    asked = {"power": power, "confidence": confidence}
    sizes = []
    for spread in spreads:
        if spread.proportions:
            _require_possible(gain, margin)
        for num_samples in SAMPLES if spread.within else (1,):
            variance = spread.at(num_samples)
            if gain is not None:
                size = prompts_for_gain(variance, gain, **asked)
            else:
                size = prompts_for_margin(
                    variance,
                    margin or 0.0,
                    proportions=spread.proportions and spread.design_effect == 1,
                    **asked,
                )
            sizes.append(
                {
                    "task": spread.task,
                    "samples_per_prompt": num_samples,
                    "num_prompts": size,
                    "num_answers": size * num_samples,
                }
            )
    return {
        "schema_version": SCHEMA_VERSION,
        "question": {"gain": gain, "margin": margin, **asked},
        "spreads": [asdict(spread) for spread in spreads],
        "sizes": sizes,
        "warnings": warnings,
    }


def _require_question(gain: float | None, margin: float | None) -> None:
    if (gain is None) == (margin is None):
        raise ConfigError(
            "a plan answers one question",
            where=argument("gain" if gain is None else "margin"),
            got="neither a gain nor a margin" if gain is None else "a gain and a margin",
            expected=f"{argument('gain', 0.03)} or {argument('margin', 0.02)}",
        )
    name, value = ("gain", gain) if gain is not None else ("margin", margin)
    if value is None or not 0 < value < math.inf:
        raise ConfigError("out of range", where=argument(name), got=value, expected="above 0")


def _require_possible(gain: float | None, margin: float | None) -> None:
    """Refuse what shares of right answers cannot differ by."""
    for name, value in (("gain", gain), ("margin", margin)):
        if value is not None and value >= 1:
            raise ConfigError(
                "answers that are right or wrong cannot differ by so much",
                where=argument(name),
                got=value,
                expected="above 0 and below 1",
                hint="0.02 is two answers in a hundred",
            )


def _require_unused(**given: object) -> None:
    """Refuse what only results could answer."""
    for name, value in given.items():
        if value is not None:
            raise ConfigError(
                "without a first set of results there is nothing to read",
                where=argument(name),
                got=str(value),
                expected="results of one model or of two before it",
                hint=f"give results, or leave out {argument(name)}",
            )


def _read(
    pilot: str | Path,
    other: str | Path | None,
    *,
    metric: str | None,
    item: str | None,
    cluster: str | None,
) -> list[Results]:
    same = other is not None and is_same_file(pilot, other)
    found = [
        read_results(path, metric=metric, item=item, cluster=cluster,
                     rows_are_items=same or other is None)
        for path in (pilot, other)
        if path is not None
    ]  # fmt: skip
    if len(found) == 2:
        require_same(*found, same_file=same)
    return found


def _assumed(accuracy: float | None, correlation: float | None) -> Spread:
    share = UNKNOWN_ACCURACY if accuracy is None else accuracy
    if not 0 < share < 1:
        raise ConfigError(
            "out of range", where=argument("accuracy"), got=share, expected="between 0 and 1"
        )
    together, source = _correlation(correlation)
    variance = variance_of_pairs(share, together)
    told = "assumed accuracy" if accuracy is not None else "accuracy not known, the worst case"
    return Spread(task="", variance=variance, estimate=variance, within=None, proportions=True,
                  num_items=None, design_effect=1.0,
                  source=f"{told} {share:g}; {source}")  # fmt: skip


def _correlation(given: float | None) -> tuple[float, str]:
    if given is None:
        return PUBLISHED_CORRELATION, f"correlation {PUBLISHED_CORRELATION:g}: {PUBLISHED_SOURCE}"
    if not -1 <= given < 1:
        raise ConfigError(
            "out of range", where=argument("correlation"), got=given, expected="-1 to below 1"
        )
    return given, f"assumed correlation {given:g}"


def _measured(
    results: Sequence[Results], accuracy: float | None, correlation: float | None
) -> list[Spread]:
    unused = {"accuracy": accuracy, "correlation": correlation if len(results) == 2 else None}
    for name, value in unused.items():
        if value is not None:
            raise ConfigError(
                "the pilot tells this itself",
                where=argument(name),
                got=value,
                hint=f"leave out {argument(name)}, or the results",
            )
    return [
        _of_pair(task, *(found.tasks[task] for found in results))
        if len(results) == 2
        else _of_one(task, results[0].tasks[task], correlation)
        for task in sorted(results[0].tasks)
    ]


def _of_pair(task: str, one: TaskResults, other: TaskResults) -> Spread:
    names = [name for name in sorted(one.scores) if one.scores[name] and other.scores[name]]
    _require_pilot(names, task)
    means = np.array([[np.mean(x.scores[name]) for name in names] for x in (one, other)])
    differences = means[1] - means[0]
    proportions = one.is_right_or_wrong and other.is_right_or_wrong
    estimate = float((differences**2).mean() if proportions else differences.var(ddof=1))
    upper = (
        upper_limit_of_share(int((differences != 0).sum()), len(names))
        if proportions
        else estimate * _upper_factor(len(names))
    )
    scatters = [_scatter(side, names) for side in (one, other)]
    averaged = sum(scatter.averaged for scatter in scatters)
    known = [scatter.variance for scatter in scatters if scatter.variance is not None]
    effect = _design_effect(differences, [one.clusters[name] for name in names])
    variance = upper + averaged
    return Spread(
        task=task,
        variance=variance,
        estimate=estimate + averaged,
        within=min(sum(known), estimate + averaged) if known else None,
        proportions=proportions,
        num_items=len(names),
        design_effect=1 + (effect - 1) * upper / variance if variance else effect,
        source=f"pilot of both models on {len(names)} items, upper limit at "
        f"{_PILOT_CONFIDENCE:.0%}",
    )


def _of_one(task: str, found: TaskResults, correlation: float | None) -> Spread:
    """Plan with another model that scatters alike.

    What is correlated are the prompts. Samples of one prompt are drawn anew for each model, so that
    their scatter counts in full on both sides, whatever the correlation.
    """
    names = [name for name in sorted(found.scores) if found.scores[name]]
    _require_pilot(names, task)
    means = np.array([np.mean(found.scores[name]) for name in names])
    together, source = _correlation(correlation)
    scatter = _scatter(found, names)
    between = max(0.0, float(means.var(ddof=1)) - scatter.left)
    estimate = 2 * (between * (1 - together) + scatter.left)
    upper = estimate * _upper_factor(len(names))
    if found.is_right_or_wrong:
        upper = min(upper, variance_of_pairs(UNKNOWN_ACCURACY, together))
    averaged = 2 * scatter.averaged
    effect = _design_effect(means, [found.clusters[name] for name in names])
    shared = (effect - 1) * 2 * float(means.var(ddof=1)) * (1 - together)
    variance = upper + averaged
    return Spread(
        task=task,
        variance=variance,
        estimate=estimate + averaged,
        within=None if scatter.variance is None else 2 * scatter.variance,
        proportions=found.is_right_or_wrong,
        num_items=len(names),
        design_effect=1 + shared * (upper / estimate) / variance if estimate else 1.0,
        source=f"pilot of one model on {len(names)} items; {source}",
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Scatter:
    """How far samples of one prompt lie apart."""

    variance: float | None
    """None where no prompt has several."""
    averaged: float
    """What the mean over a prompt's samples has lost of it."""

    @property
    def left(self) -> float:
        """What of it is still in the means."""
        return (self.variance or 0.0) - self.averaged


def _scatter(side: TaskResults, names: Sequence[str]) -> _Scatter:
    several = [side.scores[name] for name in names if len(side.scores[name]) > 1]
    if not several:
        return _Scatter(variance=None, averaged=0.0)
    variance = float(np.mean([np.var(scores, ddof=1) for scores in several]))
    kept = float(np.mean([1 / len(side.scores[name]) for name in names]))
    return _Scatter(variance=variance, averaged=variance * (1 - kept))


def _require_pilot(names: Sequence[str], task: str) -> None:
    if len(names) < 2:
        raise TableError(
            "fewer than two items have a score on both sides",
            where=f"task {task}" if task else "the pilot",
            got=len(names),
        )


def _upper_factor(num_items: int) -> float:
    """Return how far above its estimate a variance may lie."""
    return (num_items - 1) / float(stats.chi2.ppf(1 - _PILOT_CONFIDENCE, num_items - 1))


def upper_limit_of_share(differing: int, num_items: int) -> float:
    """Return the exact upper limit of the share of items that differ; what is planned with."""
    exact = stats.binomtest(differing, num_items, alternative="less")
    return float(exact.proportion_ci(_PILOT_CONFIDENCE).high)


def _design_effect(values: FloatArray, names: Sequence[str | None]) -> float:
    """Return how much wider documents make the variance of the mean; never below 1."""
    clusters = cluster_numbers(names)
    alone = float(values.var(ddof=1)) / values.size
    if clusters is None or not alone:
        return 1.0
    sums = by_cluster(values, clusters)
    return max(1.0, float(sums.var(ddof=1)) / sums.size / alone)
