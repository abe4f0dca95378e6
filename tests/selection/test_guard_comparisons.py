from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats

from expo_ray.selection.guard_comparisons import (
    compare_bounded,
    compare_intercept,
    compare_mean,
    compare_ratio,
    compare_shares,
)


def differences(more: int, fewer: int, n: int) -> np.ndarray:
    return np.r_[np.ones(more), -np.ones(fewer), np.zeros(n - more - fewer)]


def test_at_no_difference_the_score_test_is_mcnemars() -> None:
    # z = (12 - 2) / sqrt(12 + 2): two-sided 0.00753.
    found = compare_shares(differences(12, 2, 50), 0.0, 0.95)
    assert found.p_value == pytest.approx(0.007526, abs=1e-6)
    assert found.value == pytest.approx(0.2)


def test_limits_of_the_interval_are_where_the_test_turns() -> None:
    for more, fewer, n in ((12, 2, 50), (1, 0, 25), (0, 0, 100), (3, 7, 40), (25, 0, 25)):
        values = differences(more, fewer, n)
        found = compare_shares(values, 0.0, 0.95)
        for bound in (found.ci_low, found.ci_high):
            assert bound is not None
            if abs(bound) < 1:
                assert compare_shares(values, bound, 0.95).p_value == pytest.approx(0.05, abs=1e-5)
        mirrored = compare_shares(-values, 0.0, 0.95)
        assert (found.ci_low, found.ci_high) == pytest.approx(
            (-(mirrored.ci_high or 0.0), -(mirrored.ci_low or 0.0)), abs=1e-6
        )


def test_none_of_a_hundred_is_no_proof_of_none() -> None:
    # Without a discordant pair the upper limit is z^2 / (n + z^2).
    found = compare_shares(np.zeros(100), 0.01, 0.95)
    assert found.ci_high == pytest.approx(1.96**2 / (100 + 1.96**2), abs=1e-4)
    assert found.p_value > 0.05
    assert compare_shares(np.zeros(400), 0.01, 0.95).p_value < 0.05


def test_answers_of_one_prompt_count_as_parts() -> None:
    # Four samples a prompt, one of them cut off: as many as a quarter of the prompts, not fewer.
    parts = compare_shares(np.full(40, 0.25), 0.05, 0.95)
    assert parts.value == pytest.approx(0.25)
    assert parts.p_value == pytest.approx(
        compare_shares(differences(10, 0, 40), 0.05, 0.95).p_value
    )


@pytest.mark.parametrize(("common", "gap"), [(0.02, 0.05), (0.2, 0.0), (0.0, 0.01)])
def test_a_share_at_its_limit_is_called_beyond_it_in_one_of_forty(
    common: float, gap: float
) -> None:
    rng = np.random.default_rng(1)
    aligned = rng.random((1500, 60)) < common
    gained = rng.random((1500, 60)) < gap / (1 - common)
    leads = (aligned | gained).astype(float) - aligned
    more, counts = np.unique(leads.sum(axis=1), return_counts=True)
    found = [compare_shares(differences(int(m), 0, 60), gap, 0.95) for m in more]
    beyond = np.dot([f.value > gap and f.p_value <= 0.05 for f in found], counts) / len(leads)
    # 2.5% is meant; counts are coarse, and the nested gain here is the least favourable pattern.
    assert beyond <= 0.045


def test_means_and_ratios_are_students() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(0.5, 1, 40)
    found = compare_mean(values, 0.0, 0.95)
    error = values.std(ddof=1) / np.sqrt(40)
    assert found.ci_low == pytest.approx(values.mean() - 2.0227 * error, abs=1e-4)
    aligned = rng.uniform(10, 30, 40)
    longer = aligned * 1.3
    ratio = compare_ratio(longer, aligned, 1.3, 0.95)
    assert ratio.value == pytest.approx(1.3)
    assert ratio.p_value == 1.0
    assert compare_ratio(longer, aligned, 1.2, 0.95).p_value < 1e-6


def test_equal_signs_of_few_prompts_prove_little() -> None:
    assert compare_mean(np.full(3, 2.0), 0.0, 0.95).p_value == 0.25
    assert compare_mean(np.full(12, 2.0), 0.0, 0.95).p_value < 0.001
    assert compare_mean(np.array([2.0]), 0.0, 0.95).ci_low is None


def test_the_intercept_is_that_of_least_squares() -> None:
    rng = np.random.default_rng(3)
    longer = rng.normal(2, 3, 50)
    rewards = 0.4 + 0.1 * longer + rng.normal(0, 0.2, 50)
    found = compare_intercept(rewards, longer, 0.0, 0.95)
    assert found.value == pytest.approx(np.polyfit(longer, rewards, 1)[1])
    assert found.ci_low is not None and found.ci_high is not None
    assert found.ci_low < 0.4 < found.ci_high
    exact = compare_intercept(0.1 * longer, longer, 0.0, 0.95)
    assert exact.p_value == 1.0
    for low, high in itertools.pairwise((found.ci_low, found.value, found.ci_high)):
        assert low < high


def test_the_interval_of_bounded_differences_holds_what_the_test_does_not_reject() -> None:
    rng = np.random.default_rng(2)
    for mean in (0.1, 0.5, 0.9):
        values = rng.binomial(4, mean, 60) / 4 - rng.binomial(4, 0.5, 60) / 4
        found = compare_bounded(values, 0.0, 0.95)
        assert found.ci_low is not None and found.ci_high is not None
        assert -1 <= found.ci_low < found.value < found.ci_high <= 1
        for bound in (found.ci_low, found.ci_high):
            assert compare_bounded(values, bound, 0.95).p_value == pytest.approx(0.05, abs=1e-6)
    lost = compare_bounded(-np.ones(20), -0.5, 0.95)
    assert (lost.ci_low, lost.value) == (-1.0, -1.0)
    assert lost.p_value == pytest.approx(2 * stats.norm.sf(0.5 * np.sqrt(20 / 0.75)))
