"""What to try next, from what was tried: candidates beyond the edge, or inside a bracket.

Proposals use the tuning prompts that the choice will use, so a candidate found this way is as
selected as any other: it counts in the correction, and held-out prompts must confirm it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from expo_ray.selection.bootstrap import FloatArray
from expo_ray.selection.settings import SelectionSettings

BEYOND = (1.5, 2.0)
"""Candidates of an expansion, in multiples of the edge: each round doubles the range."""
FINEST_RATIO = 1.2
"""Neighbours closer than this are not told apart by any published result."""
SMALLEST_SHARE = 8
"""How far below the first candidate it is worth looking: an eighth of it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tried:
    """One candidate as far as it was measured."""

    alpha: float
    differences: FloatArray
    """Reward minus that of alpha 0 on the first prompts; not-a-number where one is missing."""
    stopped: bool
    """Whether a guard stands against it."""

    @property
    def gain(self) -> float:
        """Mean difference; minus infinity where nothing was measured."""
        finite = self.differences[np.isfinite(self.differences)]
        return float(finite.mean()) if finite.size else -math.inf


def expanding(
    tried: Sequence[Tried], first: Sequence[float], settings: SelectionSettings
) -> list[float]:
    """Return candidates beyond the edge where the best lies on one; none otherwise.

    Args:
        tried: Everything so far, ascending, alpha 0 among them.
        first: The candidates of the first round.
        settings: How far to go.
    """
    best = max(tried, key=lambda t: -math.inf if t.stopped else t.gain).alpha
    lowest, highest = tried[0].alpha, tried[-1].alpha
    step = min((abs(a) for a in first), default=0.0)
    if best == highest and best > 0:
        return [min(_short(best * factor), settings.max_alpha) for factor in BEYOND]
    if best == lowest and settings.min_alpha < 0:
        # From alpha 0 the first steps backwards mirror those forwards.
        steps = [best * f for f in BEYOND] if best < 0 else [-step, -2 * step]
        return [max(_short(a), settings.min_alpha) for a in steps]
    positive = [t.alpha for t in tried if t.alpha > 0]
    if positive and best == positive[0] and best > step / SMALLEST_SHARE:
        return [_short(best / 2)]
    return []


def bracketing(
    tried: Sequence[Tried], first: Sequence[float], settings: SelectionSettings
) -> list[float]:
    """Return the next candidates: grow, shrink, or halve the bracket around the best.

    Args:
        tried: Everything so far, ascending, alpha 0 among them.
        first: Where the search began: one alpha.
        settings: How far to go.
    """
    positive = [t for t in tried if t.alpha > 0]
    best = max(tried, key=lambda t: -math.inf if t.stopped else t.gain)
    highest = positive[-1]
    if not _past_the_best(positive, best) and highest.alpha < settings.max_alpha:
        return [min(_short(highest.alpha * 2), settings.max_alpha)]
    if best.alpha <= 0:
        start = first[-1]
        if positive[0].alpha > start / SMALLEST_SHARE:
            return [_short(positive[0].alpha / 2)]
        if settings.min_alpha < 0 and tried[0].alpha == 0:
            return [max(-start, settings.min_alpha)]
        return []
    return _inside(positive, best)


def _past_the_best(positive: Sequence[Tried], best: Tried) -> bool:
    """Whether growing further is pointless: stopped, clearly lower, or lower twice in a row."""
    highest = positive[-1]
    if highest.stopped or significantly_below(highest, best):
        return True
    lower = [t for t in positive if t.alpha > best.alpha and t.gain < best.gain]
    return best.alpha < highest.alpha and len(lower) >= 2


def _inside(positive: Sequence[Tried], best: Tried) -> list[float]:
    """Return the middles (in log alpha) towards the neighbours that are clearly below the best.

    A neighbour that noise does not tell from the best is no reason for another candidate.
    """
    below = [t for t in positive if t.alpha < best.alpha][-1:]
    above = [t for t in positive if t.alpha > best.alpha][:1]
    return [
        _short(math.sqrt(best.alpha * t.alpha))
        for t in (*below, *above)
        if max(best.alpha / t.alpha, t.alpha / best.alpha) > FINEST_RATIO**2
        and (t.stopped or significantly_below(t, best))
    ]


def significantly_below(lower: Tried, higher: Tried) -> bool:
    """Whether one candidate is below another by a paired t-test at 5%, on common prompts."""
    if lower.alpha == higher.alpha:
        return False
    n = min(lower.differences.size, higher.differences.size)
    lead = higher.differences[:n] - lower.differences[:n]
    lead = lead[np.isfinite(lead)]
    if lead.size < 2 or lead.mean() <= 0:
        return False
    error = lead.std(ddof=1) / math.sqrt(lead.size)
    return bool(error == 0 or stats.t.sf(lead.mean() / error, lead.size - 1) <= 0.025)


def _short(alpha: float) -> float:
    """Round to three digits: alphas name folders and are read by people."""
    return float(f"{alpha:.3g}")
