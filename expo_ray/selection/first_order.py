"""The first-order argument, checked: is the reward near alpha 0 a straight line along delta?

The method rests on omega(theta + alpha * delta) = omega(theta) + alpha * slope + ...: alignment
raised the reward, so a further step raises it too while the line holds. The slope is measured here
from the candidates with the smallest alphas, by least squares of slope * alpha + bend * alpha ** 2
through the origin, prompt by prompt; being linear in the rewards, its mean over prompts has a
paired bootstrap interval. Then each candidate is asked how far it lies from the line. There are
three answers, because a line that could not be refuted is not one that holds: the interval of the
departure lies within the tolerance, the departure is beyond it by more than chance, or so many
prompts cannot tell.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from expo_ray.extrapolation.planning.alpha import ALIGNED_ALPHA
from expo_ray.selection.bootstrap import FloatArray, adjust_p_values
from expo_ray.selection.candidates import estimate_mean
from expo_ray.selection.samples import SplitSamples
from expo_ray.selection.settings import SelectionSettings

NUM_FITTED = 3
"""Smallest alphas that the slope is fitted to."""
TOLERANCE = 0.2
"""Share of the prediction by which a gain may miss it: with enough prompts every curve is told from
a straight line, and a fifth is near enough to plan by."""

Answer = Literal["holds", "fails", "cannot-tell"]


def check_first_order(
    samples: SplitSamples, settings: SelectionSettings, dropped: Mapping[float, str]
) -> dict[str, Any] | None:
    """Return the slope at alpha 0 and up to which alpha the line holds.

    Args:
        samples: The tuning prompts.
        settings: Confidence and bootstrap.
        dropped: Candidates that did not answer all prompts; they count on those they answered.

    Returns:
        The part of selection.json; None without a positive alpha. `fails_at` is the first alpha
        tried whose gain misses the line by more than a fifth, beyond chance; `holds_until` the
        largest below it that was shown to lie within a fifth; `cannot_tell` those below it of which
        neither is shown. Null means that no such alpha was tried. A point has `answer`; its
        `on_the_line` only says that it does not fail.
    """
    positive = [alpha for alpha in samples.alphas if alpha > 0]
    if not positive:
        return None
    fitted = positive[:NUM_FITTED]
    differences = {alpha: _per_prompt(samples, alpha) for alpha in positive}
    slopes = _slopes(fitted, np.vstack([differences[alpha] for alpha in fitted]))
    slope = estimate_mean(slopes[np.isfinite(slopes)], settings)
    if slope.mean is None:
        return None
    low, high = slope.interval(settings.confidence)
    points = [_point(alpha, differences[alpha], slopes, slope.mean, settings) for alpha in positive]
    # Every candidate is a chance to leave the line by accident.
    adjusted = adjust_p_values([p["p_value"] for p in points], settings.correction)
    for point, p_value in zip(points, adjusted, strict=True):
        point["p_adjusted"] = p_value
        point["on_the_line"] = p_value > 1 - settings.confidence
        # A line through a single point is no evidence of its own.
        point["answer"] = _answer(point) if len(points) > 1 else "cannot-tell"
    failed = [p["alpha"] for p in points if p["answer"] == "fails"]
    fails_at = failed[0] if failed else None
    below = [p for p in points if fails_at is None or p["alpha"] < fails_at]
    held = [p["alpha"] for p in below if p["answer"] == "holds"]
    return {
        "slope": slope.mean,
        "ci_low": low,
        "ci_high": high,
        "p_value": slope.p_value(),
        "fitted_to": fitted,
        "num_prompts": slope.num_values,
        "holds_until": held[-1] if held else None,
        "fails_at": fails_at,
        "cannot_tell": [p["alpha"] for p in below if p["answer"] == "cannot-tell"],
        "tolerance": TOLERANCE,
        "num_dropped": sum(alpha in dropped for alpha in positive),
        "points": points,
    }


def _answer(point: Mapping[str, Any]) -> Answer:
    low, high = point["departure_ci_low"], point["departure_ci_high"]
    allowed = TOLERANCE * abs(point["predicted"])
    if not point["on_the_line"]:
        return "fails"
    is_shown = low is not None and high is not None and -allowed <= low and high <= allowed
    return "holds" if is_shown else "cannot-tell"


def _per_prompt(samples: SplitSamples, alpha: float) -> FloatArray:
    aligned = samples.rewards[samples.row(ALIGNED_ALPHA)]
    return samples.prompt_means(samples.rewards[samples.row(alpha)] - aligned)


def _slopes(alphas: list[float], differences: FloatArray) -> FloatArray:
    """Return one slope per prompt; not-a-number where a candidate has no reward."""
    powers = [1] if len(alphas) == 1 else [1, 2]
    design = np.array([[alpha**power for power in powers] for alpha in alphas])
    slopes: FloatArray = np.linalg.pinv(design)[0] @ differences
    return slopes


def _point(
    alpha: float,
    differences: FloatArray,
    slopes: FloatArray,
    slope: float,
    settings: SelectionSettings,
) -> dict[str, Any]:
    departures = differences - alpha * slopes
    departure = estimate_mean(departures[np.isfinite(departures)], settings)
    low, high = departure.interval(settings.confidence)
    allowed = TOLERANCE * abs(alpha * slope)
    missed = departure.mean or 0.0
    p_value = 1.0
    if abs(missed) > allowed:
        p_value = departure.p_value(allowed if missed > 0 else -allowed)
    return {
        "alpha": alpha,
        "predicted": alpha * slope,
        "departure": departure.mean,
        "departure_ci_low": low,
        "departure_ci_high": high,
        "p_value": p_value,
    }
