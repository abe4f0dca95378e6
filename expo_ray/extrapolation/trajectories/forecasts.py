"""What each fit says about a later step, as weights: the one place that knows how fits are read.

A fit is read in two ways. `fitted`: theta_fit(t) itself. `last`: the last checkpoint, moved on by
the fitted change over the whole span, theta_last + alpha * direction with alpha = (t - s_last) /
(s_last - s_0), which is what `--from last` writes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from expo_ray.extrapolation.trajectories.fits import (
    DEFAULT_OPTIONS,
    FORECASTS,
    Fit,
    FitOptions,
    Weights,
    direction_weights,
    min_checkpoints,
    needs_gram,
    rank1_weights,
    step_weights,
)


class Start(StrEnum):
    """Where a forecast starts from."""

    FITTED = "fitted"
    """theta_fit(t)."""
    LAST = "last"
    """The last checkpoint plus alpha times the fitted change."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """One way to say where the training goes."""

    name: str
    fit: Fit
    start: Start
    takes_two: bool = False
    """Whether only the first checkpoint and the last are used: ExPO."""

    @property
    def is_average(self) -> bool:
        """Whether it says the same of all later steps."""
        return self.start is Start.FITTED and self.fit not in FORECASTS


PAIR = Forecast("pair", Fit.LINE, Start.LAST, takes_two=True)
FORECAST_KINDS = (
    PAIR,
    Forecast("line", Fit.LINE, Start.FITTED),
    Forecast("line from last", Fit.LINE, Start.LAST),
    Forecast("rank1", Fit.RANK1, Start.FITTED),
    Forecast("rank1 from last", Fit.RANK1, Start.LAST),
    Forecast("wsm", Fit.WSM, Start.FITTED),
    Forecast("wsm from last", Fit.WSM, Start.LAST),
    Forecast("ema", Fit.EMA, Start.FITTED),
    Forecast("ema from last", Fit.EMA, Start.LAST),
    Forecast("bema", Fit.BEMA, Start.FITTED),
    Forecast("bema from last", Fit.BEMA, Start.LAST),
)


def can_forecast(kind: Forecast, steps: Sequence[float]) -> bool:
    """Return whether there are enough checkpoints, on steps that the fit can take."""
    needed = 2 if kind.takes_two else min_checkpoints(kind.fit)
    return len(steps) >= needed and (kind.fit is not Fit.BEMA or steps[0] >= 0)


def leverage(
    kind: Forecast, steps: Sequence[float], *, options: FitOptions = DEFAULT_OPTIONS
) -> float:
    """Return how far a forecast goes along a straight path, as a share of the true change.

    Lines go all the way. An average that is carried on from the last checkpoint does not, and how
    far it goes depends on how many checkpoints it has.

    Args:
        kind: The forecast.
        steps: Of the checkpoints that it may know.
        options: Of the fit.

    Example:
        >>> ema = next(kind for kind in FORECAST_KINDS if kind.name == "ema from last")
        >>> [round(leverage(ema, range(number)), 2) for number in (3, 20)]
        [0.28, 0.79]
    """
    if kind.start is Start.FITTED or kind.fit in FORECASTS:
        return 1.0
    axis = np.asarray(steps, dtype=np.float64)
    moved = direction_weights(kind.fit, steps, options=options) @ (axis - axis[0])
    return float(moved / (axis[-1] - axis[0]))


def forecast_weights(
    kind: Forecast,
    steps: Sequence[float],
    targets: Sequence[float],
    gram: Weights | None = None,
    *,
    options: FitOptions = DEFAULT_OPTIONS,
) -> Weights:
    """Return the weights of the checkpoints in the forecasts of several steps, [targets, N].

    Args:
        kind: The forecast.
        steps: Of the checkpoints that it may know.
        targets: The steps that are asked for.
        gram: Of rank1, the Gram matrix of the tensor over these checkpoints.
        options: Of the fit.
    """
    if kind.takes_two:
        ends = np.zeros((len(targets), len(steps)))
        ends[:, [0, -1]] = [step_weights("line", (steps[0], steps[-1]), at) for at in targets]
        return ends
    if kind.start is Start.FITTED and not needs_gram(kind.fit):
        return np.array([step_weights(kind.fit, steps, at, options=options) for at in targets])
    direction = direction_weights(kind.fit, steps, gram, options=options)
    start = np.zeros(len(steps))
    start[-1] = 1.0
    if kind.start is Start.FITTED and gram is not None:
        start = rank1_weights(gram, steps, steps[-1], options=options)
    # Fits with a Gram matrix are lines over the steps, too: one eigenvector serves all targets.
    alphas = (np.asarray(targets) - steps[-1]) / (steps[-1] - steps[0])
    found: Weights = start + alphas[:, None] * direction
    return found
