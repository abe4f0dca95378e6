"""Up to which horizon which fit beats no change on this run, from its back-tests.

A forecast beats no change at a horizon where its error is at most BEATS in the geometric mean over
the early parts, in the latest of them, and as it is to be expected now. Trainings bend: at four
times the span the latest early part is the first quarter of the run, and a forecast that went just
far enough there may go far too far today. How far it went along the true change, early part by
early part, is carried on to the present by a line through the logarithms. It has to beat no change
at all shorter horizons that could be tested, as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from expo_ray.extrapolation.trajectories.backtest import HORIZONS, BackTest
from expo_ray.extrapolation.trajectories.forecasts import FORECAST_KINDS, Forecast, leverage
from expo_ray.extrapolation.trajectories.trajectory_file import step_name

BEATS = 0.95
# One early part shows no trend.
MIN_TESTS = 2
MOSTLY_ROUNDING = 0.5
_LEAST_REACH = 0.05
_MOST_GROWTH = 5.0
EXTRAPOLATE, KEEP, UNKNOWN = "extrapolate", "keep", "unknown"


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """How one forecast did at one horizon, over all early parts."""

    forecast: str
    horizon: float
    mean_error: float
    """Geometric mean of the errors relative to no change."""
    worst_error: float
    latest_error: float
    """Of the longest early part."""
    expected_error: float
    """As it is to be expected from all checkpoints, by the trend over the early parts."""
    num_tests: int

    @property
    def cautious_error(self) -> float:
        """The largest of the three."""
        return max(self.mean_error, self.latest_error, self.expected_error)

    @property
    def beats(self) -> bool:
        """Whether it beats no change here."""
        return self.num_tests >= MIN_TESTS and self.cautious_error <= BEATS

    def as_dict(self) -> dict[str, Any]:
        """Return the fields, JSON-able."""
        return {
            "forecast": self.forecast,
            "horizon": self.horizon,
            "mean_error": self.mean_error,
            "worst_error": self.worst_error,
            "latest_error": self.latest_error,
            "expected_error": self.expected_error,
            "num_tests": self.num_tests,
            "beats": self.beats,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What to do with a trajectory."""

    decision: str
    """`extrapolate`, `keep` (the last checkpoint), or `unknown` where nothing could be tested."""
    sentence: str
    forecast: Forecast | None = None
    """What goes furthest, and among those the nearest to the withheld checkpoints."""
    horizon: float | None = None
    """Up to which it beats no change, in spans from the first to the last checkpoint."""
    at_step: float | None = None
    """The step of that horizon."""
    gain: float | None = None
    """How much nearer to the later checkpoint than the last one it came there, as a share."""
    reach: Mapping[str, float] | None = None
    """By forecast, up to which horizon it beats no change; those that never do are left out."""

    @property
    def alpha(self) -> float | None:
        """The alpha of that horizon, counted from the last checkpoint."""
        return None if self.horizon is None else self.horizon - 1.0

    def as_dict(self) -> dict[str, Any]:
        """Return the fields, JSON-able."""
        kind = self.forecast
        return {
            "decision": self.decision,
            "sentence": self.sentence,
            "forecast": None if kind is None else kind.name,
            # A pair is no fit over the trajectory: its line is of the two ends alone.
            "fit": None if kind is None or kind.takes_two else kind.fit.value,
            "from": None if kind is None or kind.takes_two else kind.start.value,
            "horizon": self.horizon,
            "at_step": self.at_step,
            "alpha": self.alpha,
            "gain": self.gain,
            "reach": dict(self.reach or {}),
        }


def scores(tests: Sequence[BackTest], steps: Sequence[float]) -> tuple[Score, ...]:
    """Return how every forecast did at every horizon, without tests that are mostly rounding.

    Args:
        tests: The back-tests of a trajectory.
        steps: Of its checkpoints.
    """
    found = []
    for kind in FORECAST_KINDS:
        for horizon in HORIZONS:
            here = [t for t in tests if t.nominal_horizon == horizon and kind.name in t.errors]
            here = [t for t in here if t.share_rounding <= MOSTLY_ROUNDING]
            if not here:
                continue
            errors = np.array([t.errors[kind.name] for t in here])
            found.append(
                Score(
                    forecast=kind.name,
                    horizon=horizon,
                    # A perfect forecast of one early part does not make up for the others.
                    mean_error=float(np.exp(np.log(np.maximum(errors, 1e-3)).mean())),
                    worst_error=float(errors.max()),
                    latest_error=float(errors[np.argmax([t.num_known for t in here])]),
                    expected_error=_expected_error(here, kind, steps),
                    num_tests=len(here),
                )
            )
    return tuple(found)


def judge(tests: Sequence[BackTest], steps: Sequence[float]) -> Verdict:
    """Return the verdict on a trajectory.

    Args:
        tests: Its back-tests.
        steps: Of its checkpoints.
    """
    table = scores(tests, steps)
    if not any(score.num_tests >= MIN_TESTS for score in table):
        return Verdict(decision=UNKNOWN, sentence=_why_unknown(tests, table, steps))
    by_kind = {kind: [s for s in table if s.forecast == kind.name] for kind in FORECAST_KINDS}
    reached = {kind: found for kind, rows in by_kind.items() if (found := _reach(rows))}
    if not reached:
        return Verdict(decision=KEEP, sentence=_why_keep(table), reach={})
    best = min(reached, key=lambda kind: (-reached[kind].horizon, reached[kind].cautious_error))
    score = reached[best]
    at_step = steps[0] + score.horizon * (steps[-1] - steps[0])
    return Verdict(
        decision=EXTRAPOLATE,
        sentence=_advice(best, score, at_step),
        forecast=best,
        horizon=score.horizon,
        at_step=at_step,
        gain=1.0 - score.mean_error,
        reach={kind.name: found.horizon for kind, found in reached.items()},
    )


def _expected_error(tests: Sequence[BackTest], kind: Forecast, steps: Sequence[float]) -> float:
    """Return the error of a forecast from all checkpoints, where its trend goes on.

    What a forecast misses is along the true change, where it goes too far or not far enough, and
    across it. The first part follows its trend, beside what more checkpoints do to the fit itself;
    the second stays as it was last.
    """
    ordered = sorted(tests, key=lambda test: test.num_known)
    places = np.array([test.last_step for test in ordered])
    levers = np.array([leverage(kind, steps[: test.num_known]) for test in ordered])
    reached = np.array([test.reaches[kind.name] for test in ordered]) / levers
    reaches = np.log(np.maximum(reached, _LEAST_REACH))
    last = ordered[-1]
    slope = 0.0
    if len(ordered) > 1:
        centred = places - places.mean()
        slope = float(centred @ reaches / (centred @ centred))
    grown = min(slope * (steps[-1] - last.last_step), _MOST_GROWTH)
    reach = reached[-1] * leverage(kind, steps) * np.exp(grown)
    across = max(0.0, last.errors[kind.name] ** 2 - (1.0 - last.reaches[kind.name]) ** 2)
    return float(np.hypot(1.0 - reach, np.sqrt(across)))


def _reach(rows: Sequence[Score]) -> Score | None:
    """Return the score at the largest horizon up to which a forecast always beats no change."""
    reached = None
    for score in sorted(rows, key=lambda row: row.horizon):
        if not score.beats:
            break
        reached = score
    return reached


def _advice(kind: Forecast, score: Score, at_step: float) -> str:
    came = (
        f"in {score.num_tests} back-test{'s' * (score.num_tests != 1)} it came "
        f"{1 - score.mean_error:.0%} nearer to the withheld checkpoint than the last known one"
    )
    if kind.is_average:
        return (
            f"{kind.fit}, an average of the checkpoints, beats the last checkpoint up to "
            f"{score.horizon:g} times the span: {came}."
        )
    return (
        f"{kind.name} beats no change up to step {step_name(at_step)} ({score.horizon:g} times "
        f"the span, alpha {score.horizon - 1:g}): {came}."
    )


def _why_keep(table: Sequence[Score]) -> str:
    tested = [score for score in table if score.num_tests >= MIN_TESTS]
    best = min(tested, key=lambda score: (score.horizon, score.cautious_error))
    return (
        f"Keep the last checkpoint: no fit beats no change on this run. The best at "
        f"{best.horizon:g} times the span, {best.forecast}, had an error of {best.mean_error:.2f} "
        f"of that of no change (latest {best.latest_error:.2f}, to be expected now "
        f"{best.expected_error:.2f}; at most {BEATS:g} is asked for)."
    )


def _why_unknown(tests: Sequence[BackTest], table: Sequence[Score], steps: Sequence[float]) -> str:
    if table:
        why = (
            "the fits could be tested on one early part alone at each horizon, which shows no "
            "trend (save checkpoints more often)"
        )
    elif tests:
        why = (
            f"the fits could not be tested, as more than {MOSTLY_ROUNDING:.0%} of the squared "
            "change between the checkpoints is rounding to their dtype (save them in float32, or "
            "further apart)"
        )
    elif len(steps) < 4:
        why = f"{len(steps)} checkpoints leave too few to withhold; five or more are needed"
    else:
        why = (
            "the fits could not be tested, as no withheld checkpoint lies where a horizon ends, or "
            "none moved"
        )
    return f"Keep the last checkpoint: {why}."
