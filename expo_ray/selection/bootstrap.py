"""Bootstrap intervals and p-values for the mean of one value per prompt, and their correction.

The interval is BCa (bias-corrected and accelerated: allows for skewed rewards), with the normal
quantile replaced by sqrt(n / (n - 1)) times Student's, which cures its known shortness at a few
dozen prompts (Hesterberg 2015, "expanded percentile"). It is never tighter than Student's: where
most differences are exactly 0, as they are at a small alpha under common random numbers, resamples
see a handful of values and BCa alone would call noise significant in one of ten runs.
The p-value inverts that same interval: it is the level at which the limit would touch the null
value, so the two never contradict each other beyond what a finite number of resamples can tell.
Nothing here knows of alphas or tables.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import stats

FloatArray = npt.NDArray[np.float64]

_CHUNK_ELEMENTS = 1 << 16
"""Prompts drawn at a time: what is drawn stays in a core's cache."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """A mean over prompts with its bootstrap distribution.

    What too few prompts cannot give is None, p-values 1.
    """

    mean: float | None
    """None without any value."""
    num_values: int
    sorted_means: FloatArray
    """Means of the resamples, ascending; empty where no interval exists."""
    acceleration: float = 0.0
    standard_error: float = 0.0
    """Of the mean, as in Student's test."""

    def interval(self, confidence: float) -> tuple[float, float] | tuple[None, None]:
        """Return the two-sided interval of the mean."""
        if self.mean is None or self.sorted_means.size == 0:
            return None, None
        tail = (1 - confidence) / 2
        low, high = (self._quantile(z) for z in (self._student(tail), self._student(1 - tail)))
        reach = float(stats.t.ppf(1 - tail, self.num_values - 1)) * self.standard_error
        return min(low, self.mean - reach), max(high, self.mean + reach)

    def p_value(self, null: float = 0.0) -> float:
        """Return the two-sided p-value of `mean == null`."""
        if self.mean is None or self.sorted_means.size == 0:
            return 1.0
        smallest = 1 / (self.sorted_means.size + 1)
        if self.sorted_means[0] == self.sorted_means[-1]:
            # All prompts agree to the last digit: sampling noise has nothing to say.
            return 1.0 if self.mean == null else smallest
        shifted = self._normal_score(null) - self._bias()
        z = shifted / (1 + self.acceleration * shifted) - self._bias()
        bootstrap_t = abs(z) * math.sqrt((self.num_values - 1) / self.num_values)
        students_t = abs(self.mean - null) / self.standard_error
        p = 2 * float(stats.t.sf(min(bootstrap_t, students_t), self.num_values - 1))
        return min(1.0, max(p, smallest))

    def _normal_score(self, value: float) -> float:
        """Normal quantile of the share of resampled means below a value.

        Beyond the outermost resample the distribution is continued as a normal one: otherwise a
        correction for many candidates could never be passed with few resamples.
        """
        score = float(stats.norm.ppf(self._share_below(value)))
        if self.sorted_means[0] <= value <= self.sorted_means[-1]:
            return score
        tail = float((value - self.sorted_means.mean()) / self.sorted_means.std())
        return max(score, tail) if value > self.sorted_means[-1] else min(score, tail)

    def _student(self, level: float) -> float:
        n = self.num_values
        return float(math.sqrt(n / (n - 1)) * stats.t.ppf(level, n - 1))

    def _share_below(self, value: float) -> float:
        """Share of resampled means below `value`, ties by half, kept off 0 and 1."""
        below = np.searchsorted(self.sorted_means, value, side="left")
        ties = np.searchsorted(self.sorted_means, value, side="right") - below
        return float((below + ties / 2 + 0.5) / (self.sorted_means.size + 1))

    def _bias(self) -> float:
        return self._normal_score(self.mean or 0.0)

    def _quantile(self, z: float) -> float:
        bias = self._bias()
        denominator = 1 - self.acceleration * (bias + z)
        # The BCa map has a pole far out in the tail; beyond it the extreme resample is the limit.
        level = 0.5 + math.copysign(0.5, z)
        if denominator > 0:
            level = float(stats.norm.cdf(bias + (bias + z) / denominator))
        return float(np.quantile(self.sorted_means, level))


def bootstrap_mean(values: FloatArray, *, num_resamples: int, seed: int) -> Estimate:
    """Resample prompts with replacement and estimate their mean.

    Args:
        values: One finite value per prompt, in an order that does not depend on the input.
        num_resamples: How many resamples.
        seed: The same seed draws the same prompts for every candidate of equal length.
    """
    n = values.size
    if n == 0:
        return Estimate(mean=None, num_values=0, sorted_means=np.empty(0))
    mean = float(values.mean())
    if n == 1:
        return Estimate(mean=mean, num_values=1, sorted_means=np.empty(0))
    centred = values - mean
    spread = float((centred**2).sum())
    if spread <= (1e-12 * max(1.0, abs(mean))) ** 2 * n:
        return Estimate(mean=mean, num_values=n, sorted_means=np.full(num_resamples, mean))
    draws = _Draws(n, seed)
    means = np.empty(num_resamples)
    step = max(1, _CHUNK_ELEMENTS // n)
    for start in range(0, num_resamples, step):
        rows = min(step, num_resamples - start)
        drawn = draws.take(rows * n).reshape(rows, n)
        means[start : start + rows] = values.take(drawn).mean(axis=1)
    means.sort()
    # Jackknife acceleration of a mean in closed form.
    acceleration = float((centred**3).sum() / (6 * spread**1.5))
    return Estimate(
        mean=mean,
        num_values=n,
        sorted_means=means,
        acceleration=acceleration,
        standard_error=math.sqrt(spread / (n - 1) / n),
    )


class _Draws:
    """Draws of one of n prompts: those of `default_rng(seed).integers(0, n, dtype=np.int32)`.

    NumPy makes one number at a time; here Lemire's method (2019, "Fast random integer generation in
    an interval") takes many random words at once, five times as fast, and no later version of NumPy
    can change what a seed draws.
    """

    def __init__(self, num_prompts: int, seed: int) -> None:
        self._words = np.random.PCG64(seed)
        self._num_prompts = np.uint64(num_prompts)
        # Words below are drawn again, or some prompts would come more often than others.
        self._refused_below = np.uint32(2**32 % num_prompts)
        self._left = np.empty(0, np.uint64)

    def take(self, count: int) -> npt.NDArray[np.int64]:
        """Return the next draws."""
        drawn = np.empty(count + 1, np.uint64)  # words come in pairs
        filled = self._left.size
        drawn[:filled] = self._left
        while filled < count:
            # Both halves of a word are drawn from, the lower one first, as NumPy does.
            halves = self._words.random_raw((count - filled + 1) // 2).astype("<u8").view("<u4")
            products = halves * self._num_prompts
            refused = products.astype(np.uint32) < self._refused_below
            if refused.any():
                products = products[~refused]
            np.right_shift(products, 32, out=drawn[filled : filled + products.size])
            filled += products.size
        self._left = drawn[count:filled].copy()
        return drawn[:count].view(np.int64)


def adjust_p_values(
    p_values: Sequence[float], method: Literal["holm", "bonferroni", "none"]
) -> list[float]:
    """Return p-values adjusted for their number, in the order given."""
    if method == "none":
        return list(p_values)
    m = len(p_values)
    if method == "bonferroni":
        return [min(1.0, m * p) for p in p_values]
    adjusted = [0.0] * m
    running = 0.0
    for rank, i in enumerate(sorted(range(m), key=lambda i: p_values[i])):
        running = max(running, min(1.0, (m - rank) * p_values[i]))
        adjusted[i] = running
    return adjusted
