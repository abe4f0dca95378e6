from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from expo_ray.selection.paired_proportions import score_statistic
from expo_ray.selection.sample_size import (
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
