from __future__ import annotations

import numpy as np
import pytest
from scipy import optimize, stats

from expo_ray.selection.paired_proportions import (
    difference_interval,
    mcnemar_p_value,
    odds_of_change,
    restricted_variance,
    score_statistic,
)


@pytest.mark.parametrize(("gained", "lost", "n", "difference"), [
    (30, 12, 220, 0.05), (30, 12, 220, -0.02), (3, 9, 100, -0.1), (0, 5, 40, 0.03), (5, 0, 40, 0.3),
])  # fmt: skip
def test_the_variance_is_that_of_maximum_likelihood(
    gained: int, lost: int, n: int, difference: float
) -> None:
    def surprise(only_first: float) -> float:
        shares = np.clip([only_first + difference, only_first, 1 - 2 * only_first - difference],
                         1e-300, 1)  # fmt: skip
        return -float(np.dot([gained, lost, n - gained - lost], np.log(shares)))

    bounds = (max(0.0, -difference), (1 - difference) / 2)
    best = optimize.minimize_scalar(surprise, bounds=bounds, method="bounded",
                                    options={"xatol": 1e-12}).x  # fmt: skip
    expected = 2 * best + difference - difference**2
    found = float(restricted_variance(gained / n, lost / n, difference))
    assert found == pytest.approx(expected, abs=1e-5)


def test_at_no_difference_the_statistic_is_mcnemars() -> None:
    assert float(score_statistic(30, 12, 220, 0.0)) == pytest.approx((30 - 12) / np.sqrt(42))


@pytest.mark.parametrize(("gained", "lost", "n"), [(30, 12, 220), (0, 0, 100), (10, 0, 10),
                                                   (7, 1, 25), (0, 3, 3)])  # fmt: skip
def test_the_interval_holds_what_the_test_does_not_reject(gained: int, lost: int, n: int) -> None:
    low, high = difference_interval(gained, lost, n, 0.95)
    assert low <= (gained - lost) / n <= high
    reach = stats.norm.ppf(0.975)
    for limit, sign in ((low, 1), (high, -1)):
        if abs(limit) < 1:
            assert float(score_statistic(gained, lost, n, limit)) == pytest.approx(
                sign * reach, abs=1e-5
            )
    mirrored = difference_interval(lost, gained, n, 0.95)
    assert mirrored == pytest.approx((-high, -low), abs=1e-8)


def test_without_a_differing_pair_the_interval_has_a_width() -> None:
    low, high = difference_interval(0, 0, 100, 0.95)
    assert -low == pytest.approx(high)
    assert 0.03 < high < 0.04  # the rule of three would say 3 of 100


def test_mcnemar_is_exact() -> None:
    assert mcnemar_p_value(1, 9) == pytest.approx(2 * (1 + 10) / 2**10)
    assert mcnemar_p_value(0, 0) == 1.0


def test_odds_that_are_infinite_are_not_given() -> None:
    assert odds_of_change(0, 0, 0.95) == (None, None, None)
    odds, low, high = odds_of_change(8, 0, 0.95)
    assert odds is None and high is None
    assert low is not None and low > 1
    assert odds_of_change(30, 12, 0.95)[0] == pytest.approx(2.5)
