from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from scipy import stats

from expo_ray.selection.paired_proportions import score_statistic
from expo_ray.selection.sample_size import (
    MOST_PROMPTS,
    detectable_difference,
    power_of_margin,
    prompts_for_gain,
    prompts_for_margin,
    variance_of_pairs,
)

ASKED = {"power": 0.8, "confidence": 0.95}


def test_a_gain_needs_what_the_textbook_says() -> None:
    # (1.96 + 0.8416)^2 = 7.849: Cohen 1988, table 2.4.
    assert prompts_for_gain(1.0, 0.5, **ASKED) == 32
    assert prompts_for_gain(0.25, 0.02, **ASKED) == 4906
    size = prompts_for_gain(0.3, 0.04, **ASKED)
    error = np.sqrt(0.3 / size)
    assert detectable_difference(error, **ASKED) == pytest.approx(0.04, rel=1e-3)


def test_the_variance_of_pairs() -> None:
    assert variance_of_pairs(0.5, 0.0) == 0.5
    assert variance_of_pairs(0.9, 0.5) == pytest.approx(0.09)


@pytest.mark.parametrize("differing", [0.0029, 0.036, 0.25])
def test_the_power_is_that_of_simulated_pairs(differing: float) -> None:
    size = prompts_for_margin(differing, 0.02, **ASKED, proportions=True)
    power = power_of_margin(size, differing, 0.02, confidence=0.95)
    assert power >= 0.8
    shares = [differing / 2, differing / 2, 1 - differing]
    drawn = np.random.default_rng(5).multinomial(size, shares, size=20_000)
    statistic = score_statistic(drawn[:, 0], drawn[:, 1], size, -0.02)
    passed = (statistic > stats.norm.ppf(0.975)).mean()
    assert passed == pytest.approx(power, abs=4 * np.sqrt(0.25 / 20_000))


def test_scores_need_the_normal_size() -> None:
    asked = {**ASKED, "proportions": False}
    assert prompts_for_margin(0.25, 0.02, **asked) == prompts_for_gain(0.25, 0.02, **ASKED)
    assert prompts_for_margin(0.0, 0.02, **asked) == 2


@pytest.mark.parametrize(("size", "differing", "margin"), [
    (50, 0.3, 0.2), (189, 0.0, 0.02), (600, 0.05, 0.02), (500, 0.25, 0.05), (4, 0.9, 0.9),
])  # fmt: skip
def test_the_power_is_the_sum_over_all_outcomes(size: int, differing: float, margin: float) -> None:
    differ, gained = np.meshgrid(np.arange(size + 1), np.arange(size + 1), indexing="ij")
    differ, gained = differ[gained <= differ], gained[gained <= differ]
    chances = stats.binom.pmf(differ, size, differing) * stats.binom.pmf(gained, differ, 0.5)
    passed = score_statistic(gained, differ - gained, size, -margin) > stats.norm.ppf(0.975)
    power = power_of_margin(size, differing, margin, confidence=0.95)
    assert power == pytest.approx(chances[passed].sum(), abs=1e-12)


def test_small_margins_take_no_table_of_all_outcomes() -> None:
    asked = {**ASKED, "proportions": True}
    tracemalloc.start()
    sizes = [prompts_for_margin(0.25, margin, **asked) for margin in (0.003, 0.001, 1e-4, 1e-300)]
    most_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sizes == [218_036, 1_962_231, 196_222_005, MOST_PROMPTS]
    assert most_bytes < 16 * 2**20
    # Few that differ are summed, however many prompts there are; where none does, sizes end, too.
    assert power_of_margin(92_240, 0.001, 3e-4, confidence=0.95) == pytest.approx(0.8065, abs=1e-4)
    assert prompts_for_margin(0.0, 1e-13, **asked) == MOST_PROMPTS
    assert prompts_for_gain(1.0, -1e-300, **ASKED) == MOST_PROMPTS


def test_where_the_approximation_takes_over_it_is_right() -> None:
    size = prompts_for_margin(0.25, 6e-4, **ASKED, proportions=True)
    assert size * 0.25 > 1_000_000
    assert power_of_margin(size, 0.25, 6e-4, confidence=0.95) == pytest.approx(0.8, abs=0.001)
