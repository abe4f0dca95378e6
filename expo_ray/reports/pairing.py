"""Gains over the aligned model, prompt by prompt, with bootstrap intervals.

Only for columns that selection.json does not hold (the hidden truth, the guards' curves): what the
selection measured is printed from there and never computed again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

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


def prompt_means(rewards: pa.Table, *, split: str | None = None) -> pa.Table:
    """Return the mean reward of each prompt, by rising ids; rows without one do not count.

    Args:
        rewards: A rewards table.
        split: Prompts of this one alone.

    Returns:
        Columns `prompt_id` and `reward_mean`.
    """
    scored = rewards_of(rewards, split=split)
    means = scored.group_by("prompt_id").aggregate([("reward", "mean")])
    return means.sort_by("prompt_id")


def rewards_of(rewards: pa.Table, *, split: str | None) -> pa.Table:
    """Return the rows of a split that have a reward; None takes both splits."""
    kept = pc.is_valid(rewards["reward"])
    if split is not None:
        kept = pc.and_(kept, pc.fill_null(pc.equal(rewards["split"], split), False))
    return rewards.filter(kept)


def paired_gain(
    tables: Mapping[float, pa.Table], alpha: float, *, split: str | None, confidence: float
) -> Gain | None:
    """Compare `alpha` with alpha 0 on the prompts that both have; None below two of them."""
    if alpha not in tables or 0.0 not in tables:
        return None
    candidate = prompt_means(tables[alpha], split=split)
    aligned = prompt_means(tables[0.0], split=split)
    place = pc.index_in(candidate["prompt_id"], aligned["prompt_id"].combine_chunks())
    known = pc.is_valid(place)
    ahead = pc.subtract(
        candidate["reward_mean"].filter(known),
        aligned["reward_mean"].take(place.filter(known)),
    )
    differences = np.asarray(ahead, np.float64)
    if differences.size < 2:
        return None
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
        num_pairs=differences.size,
    )


def gain_curve(
    tables: Mapping[float, pa.Table], *, alphas: Iterable[float], split: str, confidence: float
) -> list[Gain]:
    """Return the gain of every alpha that can be compared, by rising alpha."""
    wanted = sorted(set(alphas) & tables.keys())
    gains = (paired_gain(tables, a, split=split, confidence=confidence) for a in wanted)
    return [gain for gain in gains if gain is not None]
