"""What a guard compares: candidate and aligned model on the same prompts, against a limit.

A share (of cut-off answers, say) is a paired proportion (`paired_proportions`): of a handful of
answers resamples and normal intervals say too much. A mean of differences that are bounded (of
shares, say) is asked by a score test, any other mean by Student's paired test, a ratio of means by
the same test of `candidate - limit * aligned` (Fieller's), and what remains at equal length by the
intercept of a regression.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import stats

from expo_ray.selection.bootstrap import FloatArray
from expo_ray.selection.paired_proportions import difference_interval, score_statistic


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """A value with its interval, and how probable it is where the truth lies at the limit."""

    value: float
    ci_low: float | None
    ci_high: float | None
    p_value: float
    """Two-sided, of the truth lying at the limit; 1 where there is too little to tell."""
    num_prompts: int


def compare_shares(differences: FloatArray, limit: float, confidence: float) -> Comparison:
    """Compare two shares on the same prompts.

    Args:
        differences: Per prompt the candidate's share of answers with the sign less that of the
            aligned model: -1, 0 or 1 with one answer each. With several answers the fractions
            count as such, which makes the interval wider than it need be, never narrower.
        limit: The difference in question.
        confidence: Two-sided.
    """
    n = differences.size
    more = float(differences.clip(min=0).sum())
    fewer = float(-differences.clip(max=0).sum())
    low, high = difference_interval(more, fewer, n, confidence)
    return Comparison(
        value=(more - fewer) / n,
        ci_low=low,
        ci_high=high,
        p_value=float(2 * stats.norm.sf(abs(score_statistic(more, fewer, n, limit)))),
        num_prompts=n,
    )


def compare_bounded(differences: FloatArray, limit: float, confidence: float) -> Comparison:
    """Compare the mean of differences between scores of 0 to 1 with a limit, by a score test.

    The spread is that under the hypothesis: what was seen, with so many prompts more that lost
    everything (or gained it) as bring the mean to the limit. So prompts that all say the same are
    no proof: a rare whole loss may be among those that were not asked.

    Args:
        differences: Per prompt, between -1 and 1.
        limit: The mean in question, between -1 and 1.
        confidence: Two-sided.
    """
    n, mean = differences.size, float(differences.mean())
    square = float((differences**2).mean())
    low = _lowest(mean, square, n, confidence)
    high = -_lowest(-mean, square, n, confidence)
    side = 1 if mean >= limit else -1
    weight = _weight_of_losses(side * mean, square)
    variance = square + weight * abs(mean - limit) - limit**2
    p_value = 1.0
    if mean != limit:
        z = abs(mean - limit) * math.sqrt(n / variance) if variance > 0 else math.inf
        p_value = float(2 * stats.norm.sf(z))
    return Comparison(value=mean, ci_low=low, ci_high=high, p_value=p_value, num_prompts=n)


def _weight_of_losses(mean: float, square: float) -> float:
    """Return how much the mean square grows by for each unit that whole losses lower the mean."""
    return (1 - square) / (1 + mean) if mean > -1 else 0.0


def _lowest(mean: float, square: float, n: int, confidence: float) -> float:
    """Return the lowest mean that the test does not reject: the root of a quadratic."""
    a = float(stats.norm.ppf((1 + confidence) / 2)) ** 2 / n
    weight = _weight_of_losses(mean, square)
    half = (a * weight - 2 * mean) / 2
    last = mean**2 - a * square - a * weight * mean
    root = math.sqrt(max(half**2 - (1 + a) * last, 0.0))
    return max((-half - root) / (1 + a), -1.0)


def compare_mean(values: FloatArray, limit: float, confidence: float) -> Comparison:
    """Compare the mean of one value per prompt with a limit.

    Args:
        values: Finite ones.
        limit: The mean in question.
        confidence: Two-sided.
    """
    n = values.size
    mean = float(values.mean())
    if n < 2:
        return Comparison(value=mean, ci_low=None, ci_high=None, p_value=1.0, num_prompts=n)
    error = float(values.std(ddof=1)) / math.sqrt(n)
    lead = mean - limit
    if error <= 1e-12 * max(1.0, abs(mean)):
        # All prompts say the same, which a t-test cannot judge: the sign test of n equal signs.
        p_value = 1.0 if math.isclose(mean, limit, abs_tol=1e-12) else 2.0 ** (1 - n)
        return Comparison(value=mean, ci_low=mean, ci_high=mean, p_value=p_value, num_prompts=n)
    reach = float(stats.t.ppf((1 + confidence) / 2, n - 1)) * error
    return Comparison(
        value=mean,
        ci_low=mean - reach,
        ci_high=mean + reach,
        p_value=float(2 * stats.t.sf(abs(lead / error), n - 1)),
        num_prompts=n,
    )


def compare_ratio(
    candidate: FloatArray, aligned: FloatArray, limit: float, confidence: float
) -> Comparison:
    """Compare the ratio of two means on the same prompts with a limit.

    Args:
        candidate: One finite value per prompt.
        aligned: Those of the aligned model, with a positive mean.
        limit: The ratio in question.
        confidence: Two-sided.
    """
    found = compare_mean((candidate - limit * aligned) / aligned.mean(), 0.0, confidence)
    low, high = found.ci_low, found.ci_high
    return Comparison(
        value=float(candidate.sum() / aligned.sum()),
        ci_low=None if low is None else limit + low,
        ci_high=None if high is None else limit + high,
        p_value=found.p_value,
        num_prompts=found.num_prompts,
    )


def compare_intercept(
    rewards: FloatArray, longer: FloatArray, limit: float, confidence: float
) -> Comparison:
    """Compare what remains of a difference where another is 0 with a limit: a regression.

    Args:
        rewards: One difference per answer.
        longer: The other difference of the same answers, of at least two values.
        limit: The intercept in question.
        confidence: Two-sided.
    """
    n = rewards.size
    centred = longer - longer.mean()
    squares = float((centred**2).sum())
    slope = float((centred * rewards).sum()) / squares
    intercept = float(rewards.mean() - slope * longer.mean())
    residuals = rewards - intercept - slope * longer
    spread = float(np.sqrt((residuals**2).sum() / max(n - 2, 1)))
    error = spread * math.sqrt(1 / n + float(longer.mean()) ** 2 / squares)
    if n < 3 or error <= 1e-12 * max(1.0, abs(intercept)):
        at_limit = n < 3 or math.isclose(intercept, limit, abs_tol=1e-9)
        return Comparison(
            value=intercept,
            ci_low=None if n < 3 else intercept,
            ci_high=None if n < 3 else intercept,
            p_value=1.0 if at_limit else 2.0 ** (1 - n),
            num_prompts=n,
        )
    reach = float(stats.t.ppf((1 + confidence) / 2, n - 2)) * error
    return Comparison(
        value=intercept,
        ci_low=intercept - reach,
        ci_high=intercept + reach,
        p_value=float(2 * stats.t.sf(abs((intercept - limit) / error), n - 2)),
        num_prompts=n,
    )
