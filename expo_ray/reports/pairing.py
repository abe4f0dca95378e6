"""Gains over the aligned model, prompt by prompt, with bootstrap intervals.

Only for columns that selection.json does not hold (the hidden truth, the guards' curves): what the
selection measured is printed from there and never computed again.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from expo_ray.reports.run_files import Rows
from expo_ray.selection.bootstrap import bootstrap_mean

NUM_RESAMPLES = 10_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Gain:
    """Mean paired difference to the aligned model."""

    alpha: float
    mean: float
    ci_low: float
    ci_high: float
    num_pairs: int

    @property
    def sign(self) -> int:
        """+1 or -1 where the interval lies on one side of zero, else 0."""
        return (self.ci_low > 0) - (self.ci_high < 0)


def prompt_means(rows: Rows, *, split: str | None = None) -> dict[str, float]:
    """Return the mean reward per prompt; rows without a reward do not count."""
    collected: defaultdict[str, list[float]] = defaultdict(list)
    for row in rows:
        if row["reward"] is not None and split in (None, row["split"]):
            collected[row["prompt_id"]].append(row["reward"])
    return {prompt_id: float(np.mean(values)) for prompt_id, values in collected.items()}


def paired_gain(
    tables: Mapping[float, Rows], alpha: float, *, split: str | None, confidence: float
) -> Gain | None:
    """Compare `alpha` with alpha 0 on the prompts that both have; None below two of them."""
    if alpha not in tables or 0.0 not in tables:
        return None
    candidate = prompt_means(tables[alpha], split=split)
    aligned = prompt_means(tables[0.0], split=split)
    shared = sorted(candidate.keys() & aligned.keys())
    if len(shared) < 2:
        return None
    differences = np.array([candidate[key] - aligned[key] for key in shared])
    low, high = bootstrap_mean(differences, num_resamples=NUM_RESAMPLES, seed=0).interval(
        confidence
    )
    if low is None or high is None:
        return None
    return Gain(
        alpha=alpha,
        mean=float(differences.mean()),
        ci_low=low,
        ci_high=high,
        num_pairs=len(shared),
    )


def gain_curve(
    tables: Mapping[float, Rows], *, alphas: Iterable[float], split: str, confidence: float
) -> list[Gain]:
    """Return the gain of every alpha that can be compared, by rising alpha."""
    wanted = sorted(set(alphas) & tables.keys())
    gains = (paired_gain(tables, a, split=split, confidence=confidence) for a in wanted)
    return [gain for gain in gains if gain is not None]
