"""Shares of right answers of two models on the same prompts: tests and intervals for pairs.

Only prompts on which the two differ tell them apart: those gained (the second alone is right) and
those lost (the first alone is). The interval inverts Tango's score test (1998, "Equivalence test
and confidence interval for the difference in proportions for the paired-sample design"), whose
error rate holds where few answers differ, where Wald's interval is too short. What is no pair of
right and wrong belongs into `bootstrap`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import optimize, stats

FloatArray = npt.NDArray[np.float64]


def score_statistic(
    gained: Any, lost: Any, num_pairs: Any, difference: float | FloatArray
) -> FloatArray:
    """Return Tango's statistic of a difference of shares, standard normal where it is the true one.

    Args:
        gained: Pairs in which the second alone is right; a number or an array.
        lost: Pairs in which the first alone is right.
        num_pairs: All pairs.
        difference: Hypothesis on the second share minus the first.

    Returns:
        Positive where the second is better than the hypothesis says.
    """
    ahead = np.asarray(gained - lost - num_pairs * difference, np.float64)
    variance = restricted_variance(gained / num_pairs, lost / num_pairs, difference)
    spread = np.sqrt(num_pairs * variance)
    # Without any spread the hypothesis is either met exactly or impossible.
    with np.errstate(divide="ignore", invalid="ignore"):
        statistic: FloatArray = np.where(ahead == 0, 0.0, ahead / spread)
    return statistic


def restricted_variance(
    gained: Any, lost: Any, difference: float | FloatArray
) -> npt.NDArray[np.float64]:
    """Return the variance of one pair's difference under a hypothesis, by maximum likelihood.

    Args:
        gained: Share of pairs gained.
        lost: Share of pairs lost.
        difference: The hypothesis.
    """
    b = -(gained + lost) + (2 - (gained - lost)) * difference
    c = -lost * difference * (1 - difference)
    only_first = (np.sqrt(np.maximum(b * b - 8 * c, 0.0)) - b) / 4
    variance: FloatArray = np.asarray(
        np.maximum(2 * only_first + difference * (1 - difference), 0.0), np.float64
    )
    return variance


def difference_interval(
    gained: float, lost: float, num_pairs: int, confidence: float
) -> tuple[float, float]:
    """Return the two-sided interval of the second share minus the first.

    Args:
        gained: Pairs in which the second alone is right; parts of one where both gave several
            answers.
        lost: Pairs in which the first alone is right.
        num_pairs: All pairs, at least one.
        confidence: Of the interval; for one-sided limits of confidence c give 2 c - 1.
    """
    reach = float(stats.norm.ppf((1 + confidence) / 2))

    def beyond(difference: float, side: int) -> float:
        z = float(score_statistic(gained, lost, num_pairs, difference))
        return float(np.clip(z, -1e9, 1e9)) - side * reach

    estimate = (gained - lost) / num_pairs
    edge = 1 - 1e-12
    low, high = -1.0, 1.0
    if estimate > -edge and beyond(-edge, 1) > 0:
        low = optimize.brentq(beyond, -edge, estimate, args=(1,), xtol=1e-10)
    if estimate < edge and beyond(edge, -1) < 0:
        high = optimize.brentq(beyond, estimate, edge, args=(-1,), xtol=1e-10)
    return float(low), float(high)


def mcnemar_p_value(gained: int, lost: int) -> float:
    """Return the exact two-sided p-value of no difference (McNemar's test)."""
    if gained + lost == 0:
        return 1.0
    return float(stats.binomtest(gained, gained + lost).pvalue)


def odds_of_change(
    gained: int, lost: int, confidence: float
) -> tuple[float | None, float | None, float | None]:
    """Return the odds that a differing pair is a gain, with their exact interval.

    An infinite figure, and all of them without differing pairs, is None.
    """
    if gained + lost == 0:
        return None, None, None
    share = stats.binomtest(gained, gained + lost)
    limits = share.proportion_ci(confidence_level=confidence, method="exact")
    return _odds(share.statistic), _odds(limits.low), _odds(limits.high)


def _odds(share: float) -> float | None:
    return None if math.isclose(share, 1.0) else float(share / (1 - share))
