"""Racing: which candidates need no more prompts, because they can hardly be chosen any more.

This is stochastic curtailment (Lan, Simon and Halperin 1982; predictive power: Spiegelhalter,
Freedman and Blackburn 1986) applied to the whole rule of choice, where Hoeffding and F-races
(Maron and Moore 1994; Birattari et al. 2002) test one pair of candidates at a time. After n of N
prompts the mean differences over all N are, by what was seen,

    final mean ~ seen mean + t(n - 1) * sqrt(covariance * (1 / n - 1 / N))

Draws of it are put through the rule of choice with and without a candidate. While leaving it out
changes the choice in fewer draws than the budget of this look allows, it is dropped. A look may
spend half of what is left of `race_error`, the share of runs whose choice may differ from the full
grid's: early drops save most, and what a look does not spend the next ones have.

Dropping cannot raise the rate of false gains: whoever is chosen has answered all prompts, with a
p-value corrected for every candidate that was ever tried. It can only cost a gain.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy import special

from expo_ray.selection.bootstrap import FloatArray
from expo_ray.selection.settings import SelectionSettings

LOOKS = (1 / 8, 3 / 16, 1 / 4, 3 / 8, 1 / 2, 3 / 4)
"""Shares of the prompts after which candidates may be dropped."""
MIN_PROMPTS = 16
"""A covariance over fewer prompts is not worth a decision."""
NUM_DRAWS = 2000

Choice = npt.NDArray[np.int64]
"""Per draw the position of the chosen candidate, -1 for none."""


def look_sizes(num_prompts: int) -> list[int]:
    """Return after how many prompts to look, the last of them being all."""
    early = {round(share * num_prompts) for share in LOOKS}
    return [*sorted(n for n in early if MIN_PROMPTS <= n < num_prompts), num_prompts]


def expendable(
    differences: FloatArray,
    *,
    num_final: int,
    allowed: Sequence[bool],
    droppable: Sequence[bool],
    num_tested: int,
    budget: float,
    settings: SelectionSettings,
) -> tuple[list[int], float]:
    """Return the positions of candidates that can be left out, and the share of draws it costs.

    Args:
        differences: Reward minus that of alpha 0, candidates (most cautious first) by prompts.
        num_final: Prompts that are answered in the end.
        allowed: Whether no guard stands against a candidate.
        droppable: Whether a candidate may be left out.
        num_tested: Candidates to correct for, these and others.
        budget: Share of draws whose choice may change.
        settings: The rules of choice.
    """
    future = _Future(differences, num_final, num_tested, settings)
    active = list(allowed)
    reference = future.choose(active)
    dropped = [i for i, free in enumerate(droppable) if free and not active[i]]
    spent = 0.0
    remaining = {i for i, free in enumerate(droppable) if free and active[i]}
    while remaining:
        changes = {}
        for i in sorted(remaining, reverse=True):  # the boldest first where it makes no difference
            without = [on and k != i for k, on in enumerate(active)]
            changes[i] = float(np.mean(future.choose(without) != reference))
        least = min(changes, key=lambda i: changes[i])
        if changes[least] > budget:
            break
        spent = changes[least]
        active[least] = False
        remaining.remove(least)
        dropped.append(least)
    return sorted(dropped), spent


class _Future:
    """Draws of the mean differences after all prompts, and what would be chosen then."""

    def __init__(
        self,
        differences: FloatArray,
        num_final: int,
        num_tested: int,
        settings: SelectionSettings,
    ) -> None:
        num_candidates, num_seen = differences.shape
        rng = np.random.default_rng([settings.seed, num_seen])
        self._settings = settings
        self._num_tested = num_tested
        covariance = np.atleast_2d(np.cov(differences))
        # Not Cholesky: candidates with equal answers make the matrix singular.
        values, vectors = np.linalg.eigh(covariance)
        root = vectors * np.sqrt(np.clip(values, 0, None))
        scale = np.sqrt((num_seen - 1) / rng.chisquare(num_seen - 1, NUM_DRAWS))
        noise = rng.standard_normal((NUM_DRAWS, num_candidates)) @ root.T
        shrink = np.sqrt(1 / num_seen - 1 / num_final)
        self._means = differences.mean(axis=1) + noise * (shrink * scale)[:, None]
        self._variance = covariance / num_final
        self._p_values = self._two_sided(
            self._means - settings.min_gain, np.sqrt(np.diag(self._variance))
        )

    def choose(self, active: Sequence[bool]) -> Choice:
        """Apply the rule of choice to every draw, with the active candidates alone."""
        on = np.array(active, dtype=bool)
        eligible = (
            on
            & (self._means > self._settings.min_gain)
            & (self._adjusted(on) <= 1 - self._settings.confidence)
        )
        best = np.where(eligible, self._means, -np.inf).argmax(axis=1)
        chosen: Choice = np.where(eligible.any(axis=1), best, -1)
        if self._settings.prefer == "best":
            return chosen
        # From the boldest to the most cautious: the last one within the noise stays.
        for i in range(on.size - 1, -1, -1):
            lead = np.take_along_axis(self._means, best[:, None], axis=1)[:, 0] - self._means[:, i]
            spread = self._variance[i, i] + np.diag(self._variance)[best]
            spread = np.sqrt(np.clip(spread - 2 * self._variance[i, best], 0, None))
            close = (lead <= 0) | (self._two_sided(lead, spread) > 1 - self._settings.confidence)
            chosen = np.where(eligible[:, i] & close, i, chosen)
        return chosen

    def _adjusted(self, on: npt.NDArray[np.bool_]) -> FloatArray:
        """P-values corrected as `adjust_p_values` does; those not active count as 1."""
        p: FloatArray = np.where(on, self._p_values, 1.0)
        method = self._settings.correction
        if method == "none":
            return p
        if method == "bonferroni":
            return np.minimum(1.0, p * self._num_tested)
        order = np.argsort(p, axis=1)
        factors = self._num_tested - np.arange(p.shape[1])
        in_order = np.take_along_axis(p, order, axis=1) * factors
        stepped = np.maximum.accumulate(np.minimum(1.0, in_order), axis=1)
        adjusted = np.empty_like(p)
        np.put_along_axis(adjusted, order, stepped, axis=1)
        return adjusted

    @staticmethod
    def _two_sided(means: FloatArray, errors: FloatArray) -> FloatArray:
        with np.errstate(divide="ignore", invalid="ignore"):
            z = np.abs(means) / errors
        # No spread and no difference: nothing was seen at all.
        return np.asarray(np.nan_to_num(2 * special.ndtr(-z), nan=1.0))
