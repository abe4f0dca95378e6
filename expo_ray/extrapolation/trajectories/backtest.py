"""The back-test: fit on the early part of a path, forecast checkpoints that were withheld.

Errors are distances in weights, relative to those of "no change": how far the last checkpoint of
the early part lies from the withheld one. Below 1 a forecast is nearer to it. All of it comes from
Gram matrices; nothing is read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from expo_ray.extrapolation.arithmetic.path_sums import PathSums
from expo_ray.extrapolation.trajectories.fits import (
    DEFAULT_OPTIONS,
    FitOptions,
    Weights,
    needs_gram,
)
from expo_ray.extrapolation.trajectories.forecasts import (
    FORECAST_KINDS,
    Forecast,
    can_forecast,
    forecast_weights,
)
from expo_ray.extrapolation.trajectories.path_shape import (
    rounding_share,
    squared_distance,
    total_of,
)

HORIZONS = (1.25, 1.5, 2.0, 3.0, 4.0)
# A withheld checkpoint stands for a horizon that it misses by less than this factor.
NEAR_HORIZON = 1.1
MIN_KNOWN = 3
# Early parts beyond so many tell little more: neighbours share most of their checkpoints.
MAX_EARLY_PARTS = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class BackTest:
    """One early part and one withheld checkpoint."""

    num_known: int
    last_step: float
    """Of the early part."""
    target_step: float
    horizon: float
    """(target - first) / (last - first), over the steps."""
    nominal_horizon: float
    """Of HORIZONS, the one that it stands for."""
    no_change: float
    """Distance from the last checkpoint of the early part to the withheld one."""
    share_rounding: float
    """Of the square of that distance, what rounding explains."""
    errors: Mapping[str, float] = field(default_factory=dict)
    """By forecast: its distance from the withheld checkpoint, relative to `no_change`."""
    reaches: Mapping[str, float] = field(default_factory=dict)
    """By forecast: how far it goes along the true change, as a share of it; above 1 too far."""

    def as_dict(self) -> dict[str, Any]:
        """Return the fields, JSON-able."""
        return {
            "num_known": self.num_known,
            "last_step": self.last_step,
            "target_step": self.target_step,
            "horizon": self.horizon,
            "nominal_horizon": self.nominal_horizon,
            "no_change": self.no_change,
            "share_rounding": self.share_rounding,
            "errors": dict(self.errors),
            "reaches": dict(self.reaches),
        }


def back_tests(
    tensors: Mapping[str, PathSums],
    steps: Sequence[float],
    *,
    kinds: Sequence[Forecast] = FORECAST_KINDS,
    options: FitOptions = DEFAULT_OPTIONS,
) -> tuple[BackTest, ...]:
    """Run all back-tests that a path allows, early parts by length.

    Args:
        tensors: The sums of every tensor, by name.
        steps: Of the checkpoints.
        kinds: The forecasts to test.
        options: Of the fits.

    Returns:
        None where there are fewer than four checkpoints, or none moved.
    """
    total = total_of(tensors.values())
    if total is None:
        return ()
    found = []
    for num_known, targets in _early_parts(steps):
        moved = {h: k for h, k in targets.items() if squared_distance(total, num_known - 1, k) > 0}
        indices = list(moved.values())
        found_by = {
            kind.name: forecast_errors(kind, tensors, total, steps, num_known, indices, options)
            for kind in kinds
            if can_forecast(kind, steps[:num_known])
        }
        for place, (horizon, target) in enumerate(moved.items()):
            no_change = squared_distance(total, num_known - 1, target)
            found.append(
                BackTest(
                    num_known=num_known,
                    last_step=float(steps[num_known - 1]),
                    target_step=float(steps[target]),
                    horizon=_horizon(steps, num_known, target),
                    nominal_horizon=horizon,
                    no_change=no_change**0.5,
                    share_rounding=rounding_share(total, num_known - 1, target) or 0.0,
                    errors={
                        name: float(np.sqrt(squares[place] / no_change))
                        for name, (squares, _) in found_by.items()
                    },
                    reaches={
                        name: float(along[place] / no_change)
                        for name, (_, along) in found_by.items()
                    },
                )
            )
    return tuple(found)


def forecast_errors(
    kind: Forecast,
    tensors: Mapping[str, PathSums],
    total: PathSums,
    steps: Sequence[float],
    num_known: int,
    targets: Sequence[int],
    options: FitOptions = DEFAULT_OPTIONS,
) -> tuple[Weights, Weights]:
    """Compare the forecasts of several checkpoints with these.

    Args:
        kind: The forecast.
        tensors: The sums of every tensor.
        total: Their sum.
        steps: Of all checkpoints.
        num_known: How many of them the forecast knows.
        targets: Indices of the checkpoints that are forecast.
        options: Of the fit.

    Returns:
        Squared distances from these checkpoints; and scalar products of the forecast changes from
        the last known checkpoint with the true ones.
    """
    known, at = steps[:num_known], [steps[k] for k in targets]
    parts = tensors.values() if needs_gram(kind.fit) else (total,)
    true = np.zeros((len(targets), len(steps)))
    true[np.arange(len(targets)), targets] = 1.0
    true[:, num_known - 1] -= 1.0
    squares, along = np.zeros((2, len(targets)))
    for sums in parts:
        change = np.zeros((len(targets), len(steps)))
        early = sums.gram[:num_known, :num_known]
        change[:, :num_known] = forecast_weights(kind, known, at, early, options=options)
        change[:, num_known - 1] -= 1.0
        gap = change - true
        squares += np.maximum(0.0, np.einsum("ti,ij,tj->t", gap, sums.gram, gap))
        along += np.einsum("ti,ij,tj->t", change, sums.gram, true)
    return squares, along


def _early_parts(steps: Sequence[float]) -> list[tuple[int, dict[float, int]]]:
    """Return (number of known checkpoints, withheld checkpoint by horizon) of every early part."""
    found = []
    for num_known in range(MIN_KNOWN, len(steps)):
        targets: dict[float, int] = {}
        for horizon in HORIZONS:
            misses = {
                k: abs(np.log(_horizon(steps, num_known, k) / horizon))
                for k in range(num_known, len(steps))
            }
            nearest = min(misses, key=lambda k: misses[k])
            if misses[nearest] <= np.log(NEAR_HORIZON) and nearest not in targets.values():
                targets[horizon] = nearest
        if targets:
            found.append((num_known, targets))
    if len(found) <= MAX_EARLY_PARTS:
        return found
    kept = np.unique(np.linspace(0, len(found) - 1, MAX_EARLY_PARTS).round().astype(int))
    return [found[i] for i in kept]


def _horizon(steps: Sequence[float], num_known: int, target: int) -> float:
    return float((steps[target] - steps[0]) / (steps[num_known - 1] - steps[0]))
