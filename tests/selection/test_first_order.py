from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from expo_ray.selection import SelectionSettings, choose_alpha
from expo_ray.selection.bootstrap import FloatArray
from tests.selection.tables import make_rows, responses_of, rewards_of

ALPHAS = (0.1, 0.2, 0.3, 0.5, 1.0, 2.0, 4.0)


def first_order(
    gain: Callable[[float], float | FloatArray],
    *,
    alphas: tuple[float, ...] = ALPHAS,
    noise: float = 0.05,
    seed: int = 0,
) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    base = rng.normal(0, 3, 400)
    rewards = {0.0: list(base)}
    for alpha in alphas:
        rewards[alpha] = list(base + gain(alpha) + alpha * noise * rng.normal(0, 1, 400))
    rows = make_rows(rewards, num_tuning=200)
    settings = SelectionSettings(num_resamples=1000)
    selection = choose_alpha(responses_of(rows), rewards_of(rows), settings=settings)
    found: dict[str, Any] = selection["first_order"]
    return found


def test_a_straight_line_holds_everywhere() -> None:
    found = first_order(lambda a: 0.7 * a, seed=1)
    assert found["slope"] == pytest.approx(0.7, abs=0.05)
    assert found["ci_low"] < 0.7 < found["ci_high"]
    assert (found["holds_until"], found["fails_at"]) == (4.0, None)
    assert found["fitted_to"] == [0.1, 0.2, 0.3]


def test_a_bend_ends_the_line() -> None:
    found = first_order(lambda a: 0.7 * a - 0.2 * a**2)
    assert found["slope"] == pytest.approx(0.7, abs=0.05)
    # The bend takes 0.2 / 0.7 * alpha of the prediction: a fifth at alpha 0.7.
    assert (found["holds_until"], found["fails_at"]) == (0.5, 1.0)
    last = found["points"][-1]
    assert last["departure"] == pytest.approx(-3.2, abs=0.3)
    assert not last["on_the_line"]


def test_a_line_that_is_not_refuted_is_not_called_one_that_holds() -> None:
    # So much noise that the line predicts 2.8 and anything around it may be measured.
    found = first_order(lambda a: 0.7 * a, noise=4.0, seed=3)
    assert found["fails_at"] is None
    assert found["holds_until"] is None
    assert found["cannot_tell"] == list(ALPHAS)
    assert {point["answer"] for point in found["points"]} == {"cannot-tell"}
    assert all(point["on_the_line"] for point in found["points"])


def test_each_point_holds_where_its_interval_lies_within_the_tolerance() -> None:
    found = first_order(lambda a: 0.7 * a, noise=0.35, seed=1)
    answers = set()
    for point in found["points"]:
        allowed = found["tolerance"] * abs(point["predicted"])
        inside = -allowed <= point["departure_ci_low"] <= point["departure_ci_high"] <= allowed
        assert (point["answer"] == "holds") == inside
        answers.add(point["answer"])
    assert answers == {"holds", "cannot-tell"}
    held = [p["alpha"] for p in found["points"] if p["answer"] == "holds"]
    assert found["holds_until"] == max(held)


def test_noise_does_not_end_a_line() -> None:
    ended = [
        first_order(lambda a: 0.7 * a, noise=1.0, seed=seed)["fails_at"] is not None
        for seed in range(20)
    ]
    assert sum(ended) <= 4  # P < 1% at a rate of 5%


def test_one_candidate_gives_a_slope_and_no_judgement() -> None:
    found = first_order(lambda a: 0.7 * a, alphas=(0.5,))
    assert found["slope"] == pytest.approx(0.7, abs=0.05)
    # The line was drawn through this very point.
    assert (found["holds_until"], found["cannot_tell"]) == (None, [0.5])
    assert found["points"][0]["departure"] == pytest.approx(0, abs=1e-9)


def test_without_a_positive_alpha_there_is_none() -> None:
    rows = make_rows({0.0: [1.0] * 40, -0.5: [0.0] * 40}, num_tuning=20)
    assert choose_alpha(responses_of(rows), rewards_of(rows))["first_order"] is None
