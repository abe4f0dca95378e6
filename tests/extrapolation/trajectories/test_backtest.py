"""Back-tests against forecasts made in full weights, and verdicts on paths of known shape."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from expo_ray.extrapolation.trajectories.backtest import (
    HORIZONS,
    MAX_EARLY_PARTS,
    back_tests,
    forecast_errors,
)
from expo_ray.extrapolation.trajectories.fits import step_weights
from expo_ray.extrapolation.trajectories.forecasts import (
    FORECAST_KINDS,
    Forecast,
    can_forecast,
)
from expo_ray.extrapolation.trajectories.path_shape import squared_distance, total_of
from expo_ray.extrapolation.trajectories.verdict import EXTRAPOLATE, KEEP, UNKNOWN, judge, scores
from tests.extrapolation.trajectories.paths import measured, synthetic_path

STEPS = tuple(float(step) for step in range(0, 210, 10))
UNEVEN = (0.0, 5.0, 20.0, 30.0, 70.0, 80.0, 100.0, 150.0, 160.0, 210.0, 300.0)


def forecast(
    kind: Forecast, known: NDArray[np.float64], steps: tuple[float, ...], target: float
) -> NDArray[np.float64]:
    """The forecast of one tensor, in weights, from the descriptions of the fits."""
    span, alpha = steps[-1] - steps[0], (target - steps[-1]) / (steps[-1] - steps[0])
    if kind.takes_two:
        ahead: NDArray[np.float64] = known[-1] + alpha * (known[-1] - known[0])
        return ahead
    if kind.fit == "line":
        slope, intercept = np.polyfit(steps, known, 1)
        fitted, direction = slope * target + intercept, slope * span
    elif kind.fit == "rank1":
        changes = known[1:] - known[0]
        row = np.linalg.svd(changes, full_matrices=False)[2][0]
        slope, intercept = np.polyfit(steps[1:], changes @ row, 1)
        fitted, direction = known[0] + (slope * target + intercept) * row, slope * span * row
    else:
        fitted = step_weights(kind.fit, steps, target) @ known
        direction = fitted - known[0]
    return fitted if kind.start == "fitted" else known[-1] + alpha * direction


@pytest.mark.parametrize("kind", FORECAST_KINDS, ids=lambda kind: kind.name)
@pytest.mark.parametrize("steps", [STEPS, UNEVEN])
def test_errors_are_those_of_forecasts_in_full_weights(
    kind: Forecast, steps: tuple[float, ...]
) -> None:
    path = synthetic_path("noisy line", steps, num_values=300)
    tensors = measured(path, torch.float64)
    total = total_of(tensors.values())
    assert total is not None
    targets = [7, 9, 10]
    squares, products = forecast_errors(kind, tensors, total, steps, 6, targets)
    for index, square, product in zip(targets, squares, products, strict=True):
        parts = [
            forecast(kind, part[:6], steps[:6], steps[index])
            for part in np.array_split(path, 2, axis=1)
        ]
        ahead = np.concatenate(parts)
        assert square == pytest.approx(((ahead - path[index]) ** 2).sum(), rel=1e-6)
        along = (ahead - path[5]) @ (path[index] - path[5])
        assert product == pytest.approx(along, rel=1e-5, abs=1e-6 * square)


def test_horizons_are_over_the_steps_and_not_over_the_number_of_checkpoints() -> None:
    tests = back_tests(measured(synthetic_path("curve", UNEVEN)), UNEVEN)
    assert tests
    for test in tests:
        assert test.horizon == pytest.approx(test.target_step / test.last_step)
        assert test.horizon == pytest.approx(test.nominal_horizon, rel=0.1)
        assert test.last_step == UNEVEN[test.num_known - 1]
        assert set(test.errors) == {kind.name for kind in FORECAST_KINDS}


def test_early_parts_of_a_long_path_are_limited() -> None:
    steps = tuple(range(60))
    tests = back_tests(measured(synthetic_path("curve", steps, num_values=50)), steps)
    assert len({test.num_known for test in tests}) <= MAX_EARLY_PARTS
    assert {test.nominal_horizon for test in tests} == set(HORIZONS)
    assert max(test.num_known for test in tests) > 45


def test_a_line_is_forecast_and_a_walk_is_kept() -> None:
    line = judge(back_tests(measured(synthetic_path("line", STEPS)), STEPS), STEPS)
    assert line.decision == EXTRAPOLATE
    assert (line.horizon, line.at_step, line.alpha) == (4, 800, 3)
    assert line.gain == pytest.approx(1, abs=0.01)
    assert line.reach is not None
    assert line.reach["pair"] == line.reach["rank1"] == 4
    assert "step 800" in line.sentence
    walk = judge(back_tests(measured(synthetic_path("walk", STEPS)), STEPS), STEPS)
    assert (walk.decision, walk.forecast, walk.horizon) == (KEEP, None, None)
    assert walk.sentence.startswith("Keep the last checkpoint: no fit beats no change")


def test_a_run_that_settles_is_not_given_the_pair_s_line() -> None:
    tests = back_tests(measured(synthetic_path("curve", STEPS)), STEPS)
    verdict = judge(tests, STEPS)
    assert verdict.reach is not None
    assert not {"pair", "line", "line from last", "rank1"} & verdict.reach.keys()
    # Its early parts alone would have looked good: the mean over them is below one.
    pair = [s for s in scores(tests, STEPS) if (s.forecast, s.horizon) == ("pair", 1.25)]
    assert pair[0].mean_error < 0.95 < pair[0].latest_error


def test_noise_of_rounding_is_no_ground_for_a_verdict() -> None:
    path = synthetic_path("line", STEPS)
    small = path[0] + (path - path[0]) * 0.02
    verdict = judge(back_tests(measured(small, torch.bfloat16), STEPS), STEPS)
    assert verdict.decision == UNKNOWN
    assert "rounding" in verdict.sentence
    assert judge(back_tests(measured(small), STEPS), STEPS).decision == EXTRAPOLATE


def test_few_checkpoints_leave_none_to_withhold() -> None:
    steps = (0.0, 10.0, 20.0)
    verdict = judge(back_tests(measured(synthetic_path("line", steps)), steps), steps)
    assert verdict.decision == UNKNOWN
    assert "five or more are needed" in verdict.sentence
    assert verdict.as_dict()["forecast"] is None


def test_one_early_part_shows_no_trend() -> None:
    steps = (0.0, 10.0, 20.0, 30.0)
    tests = back_tests(measured(synthetic_path("line", steps)), steps)
    assert len(tests) == 1
    verdict = judge(tests, steps)
    assert (verdict.decision, verdict.reach) == (UNKNOWN, None)
    assert "shows no trend" in verdict.sentence


def test_a_forecast_that_reaches_farther_each_time_goes_too_far_in_the_end() -> None:
    steps = tuple(float(step) for step in range(0, 155, 5))
    tests = back_tests(measured(synthetic_path("curve", steps)), steps)
    by_horizon = {s.horizon: s for s in scores(tests, steps) if s.forecast == "wsm from last"}
    far = by_horizon[4]
    assert max(far.mean_error, far.latest_error) < 0.95 < far.expected_error
    assert not far.beats
    verdict = judge(tests, steps)
    assert verdict.reach is not None
    assert verdict.reach.get("wsm from last", 1) < 4


def test_what_more_checkpoints_do_to_an_average_is_not_taken_for_the_training() -> None:
    """Slowing like a root looks the same at every scale; bema over 20 goes farther than over 5."""
    known = np.linspace(0.0, 100.0, 20)
    steps = tuple(np.append(known, 100 * np.array(HORIZONS)).tolist())
    random = np.random.default_rng(0)
    base, direction = random.normal(size=(2, 2000)) * [[20.0], [1.0]]
    path = base + np.outer(np.sqrt(steps), direction)
    early, whole = measured(path[:20]), measured(path)
    verdict = judge(back_tests(early, steps[:20]), steps[:20])
    assert verdict.decision == EXTRAPOLATE
    assert verdict.reach is not None
    total = total_of(whole.values())
    assert total is not None
    for kind in FORECAST_KINDS:
        if kind.name in verdict.reach:
            target = 20 + HORIZONS.index(verdict.reach[kind.name])
            (square,), _ = forecast_errors(kind, whole, total, steps, 20, [target])
            assert square < squared_distance(total, 19, target), kind.name


def test_a_horizon_counts_only_where_all_shorter_ones_hold() -> None:
    tests = back_tests(measured(synthetic_path("line", STEPS)), STEPS)
    bent = [
        replace(test, errors=dict.fromkeys(test.errors, 2.0 if test.nominal_horizon == 2 else 0.1))
        for test in tests
    ]
    verdict = judge(bent, STEPS)
    assert verdict.horizon == 1.5


def test_bema_is_left_out_where_steps_are_negative() -> None:
    steps = (-10.0, 0.0, 10.0)
    left_out = [kind.name for kind in FORECAST_KINDS if not can_forecast(kind, steps)]
    assert left_out == ["bema", "bema from last"]
