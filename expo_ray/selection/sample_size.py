"""How many prompts a question needs, and what difference a number of prompts can show.

Every interval is two-sided, as those that decide are: a gain is seen where its interval lies above
0, a margin is kept where it lies above minus the margin. Sizes follow from the normal
approximation; where answers are right or wrong and a margin decides, the size is then raised until
the test itself (`paired_proportions`), whose power can be summed exactly, has the power asked for.
Where so many prompts differ that the sum says the same, the approximation stands alone.
"""

from __future__ import annotations

import math

import numpy as np
from scipy import stats

from expo_ray.selection.paired_proportions import restricted_variance, score_statistic

PUBLISHED_CORRELATION = 0.5
"""Of two models' answers to the same questions: the middle of what was published."""
PUBLISHED_SOURCE = (
    "correlations of 0.3 to 0.7 between frontier models' scores of the same questions (Miller "
    "2024, Adding Error Bars to Evals, arXiv 2411.00640)"
)
UNKNOWN_ACCURACY = 0.5
"""The share of right answers whose spread is largest."""
MOST_PROMPTS = 10**12
"""The largest size that is told; it stands for all above, too."""
_STEP = 1.01
_FAR = 8.0
"""Standard deviations beyond which nothing is summed."""
_MANY_DIFFERING = 1_000_000
"""Prompts that differ, from which on the normal approximation of the power is right to 0.001."""


def prompts_for_gain(variance: float, gain: float, *, power: float, confidence: float) -> int:
    """Return how many prompts show a gain.

    Args:
        variance: Of one prompt's difference.
        gain: True mean difference, not 0.
        power: Probability of seeing it.
        confidence: Of the interval, two-sided.
    """
    return _size(math.sqrt(variance) * _reach(power, confidence), gain)


def prompts_for_margin(
    variance: float, margin: float, *, power: float, confidence: float, proportions: bool
) -> int:
    """Return how many prompts show that an equal model is no worse than a margin allows.

    Args:
        variance: Of one prompt's difference; of right and wrong answers the share that differs.
        margin: What may be lost, above 0.
        power: Probability that an equal model passes.
        confidence: Of the interval, two-sided.
        proportions: Whether each prompt is answered right or wrong.
    """
    if not proportions:
        return prompts_for_gain(variance, margin, power=power, confidence=confidence)
    under_margin = float(restricted_variance(variance / 2, variance / 2, -margin))
    reach = _z((1 + confidence) / 2) * math.sqrt(under_margin) + _z(power) * math.sqrt(variance)
    size = _size(reach, margin)
    while (
        size < MOST_PROMPTS
        and size * variance < _MANY_DIFFERING
        and power_of_margin(size, variance, margin, confidence=confidence) < power
    ):
        size = math.ceil(size * _STEP)
    return min(size, MOST_PROMPTS)


def prompts_for_shares(square: float, margin: float, *, power: float, confidence: float) -> int:
    """Return how many prompts show that an equal model's shares are no worse than a margin allows.

    Args:
        square: Mean square of one prompt's difference between scores of 0 to 1.
        margin: What may be lost, above 0 and below 1.
        power: Probability that an equal model passes.
        confidence: Of the interval, two-sided.
    """
    under_margin = square + (1 - square) * margin - margin**2
    reach = _z((1 + confidence) / 2) * math.sqrt(under_margin) + _z(power) * math.sqrt(square)
    return _size(reach, margin)


def power_of_margin(
    num_prompts: int, differing: float, margin: float, *, confidence: float
) -> float:
    """Return how often an equal model passes, exactly: a sum over all outcomes.

    Args:
        num_prompts: Each answered right or wrong.
        differing: Share of prompts that only one of the two answers right.
        margin: What may be lost.
        confidence: Of the interval, two-sided.
    """
    mean, spread = num_prompts * differing, math.sqrt(num_prompts * differing * (1 - differing))
    first, last = max(0, int(mean - _FAR * spread) - 1), int(mean + _FAR * spread) + 2
    counts = np.arange(first, min(num_prompts, last) + 1)
    # Of so many that differ the model passes from some number of gains on: never a table of both.
    failing, passing = np.full_like(counts, -1), counts + 1
    while (passing - failing > 1).any():
        gained = (failing + passing) // 2
        statistic = score_statistic(gained, counts - gained, num_prompts, -margin)
        passes = statistic > _z((1 + confidence) / 2)
        passing, failing = np.where(passes, gained, passing), np.where(passes, failing, gained)
    passed = stats.binom.sf(passing - 1, counts, 0.5)
    return float((stats.binom.pmf(counts, num_prompts, differing) * passed).sum())


def detectable_difference(standard_error: float, *, power: float, confidence: float) -> float:
    """Return the smallest true difference that is seen with some power.

    Args:
        standard_error: Of the mean difference.
        power: Probability of seeing it.
        confidence: Of the interval, two-sided.
    """
    return _reach(power, confidence) * standard_error


def variance_of_pairs(accuracy: float, correlation: float) -> float:
    """Return the variance of a difference of right and wrong between two equally good models.

    Args:
        accuracy: Share of right answers of both.
        correlation: Of their answers to the same prompt.
    """
    return 2 * accuracy * (1 - accuracy) * (1 - correlation)


def _size(reach: float, difference: float) -> int:
    """Return how many prompts bring a reach, for one prompt, below a difference."""
    root = reach / abs(difference)
    return MOST_PROMPTS if root > math.sqrt(MOST_PROMPTS) else max(2, math.ceil(root**2))


def _reach(power: float, confidence: float) -> float:
    return _z((1 + confidence) / 2) + _z(power)


def _z(level: float) -> float:
    return float(stats.norm.ppf(level))
