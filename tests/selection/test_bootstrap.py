from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from expo_ray.selection.bootstrap import _Draws, adjust_p_values, bootstrap_mean


def test_interval_agrees_with_scipy_bca_on_many_skewed_values() -> None:
    values = np.random.default_rng(3).exponential(size=2000)
    ours = bootstrap_mean(values, num_resamples=10_000, seed=1).interval(0.95)
    theirs = stats.bootstrap(
        (values,), np.mean, n_resamples=9999, method="BCa", rng=np.random.default_rng(2), batch=500
    ).confidence_interval
    width = theirs.high - theirs.low
    assert ours[0] == pytest.approx(theirs.low, abs=0.04 * width)
    assert ours[1] == pytest.approx(theirs.high, abs=0.04 * width)


@pytest.mark.parametrize("skewed", [False, True])
def test_interval_covers_the_mean_as_often_as_it_says(skewed: bool) -> None:
    rng = np.random.default_rng(11)
    covered = 0
    for i in range(600):
        values = rng.exponential(size=30) - 1 if skewed else rng.normal(size=30)
        low, high = bootstrap_mean(values, num_resamples=1000, seed=i).interval(0.95)
        assert low is not None and high is not None
        covered += low <= 0 <= high
    # 600 trials of 95% have a standard error of 0.9%; skewed data cost a BCa interval about 1.5%.
    assert 0.915 <= covered / 600 <= 0.98


def test_p_values_under_no_effect_are_as_small_as_they_claim() -> None:
    rng = np.random.default_rng(5)
    p_values = np.array(
        [
            bootstrap_mean(rng.normal(size=25), num_resamples=1000, seed=i).p_value()
            for i in range(600)
        ]
    )
    assert (p_values <= 0.05).mean() <= 0.07
    assert (p_values <= 0.5).mean() == pytest.approx(0.5, abs=0.06)


@pytest.mark.parametrize("share", [0.02, 0.05, 0.2])
def test_few_differences_that_are_not_zero_do_not_look_like_a_gain(share: float) -> None:
    rng = np.random.default_rng(7)
    gains = 0
    for i in range(600):
        values = rng.normal(size=100) * (rng.random(100) < share)
        estimate = bootstrap_mean(values, num_resamples=1000, seed=i)
        low, _ = estimate.interval(0.95)
        assert low is not None
        assert (low > 0) <= (estimate.p_value() < 0.06)
        gains += low > 0
    # 2.5% of the runs may; their share has a standard error of 0.6%.
    assert gains / 600 <= 0.045


@given(st.integers(0, 10_000), st.floats(-0.6, 0.6), st.integers(12, 60))
def test_p_value_and_interval_say_the_same(seed: int, shift: float, n: int) -> None:
    values = np.random.default_rng(seed).normal(shift, 1, n)
    estimate = bootstrap_mean(values, num_resamples=2000, seed=0)
    p = estimate.p_value()
    low, high = estimate.interval(0.95)
    assert low is not None and high is not None
    if not 0.045 < p < 0.055:  # between resamples the two may round differently
        assert (p < 0.05) == (low > 0 or high < 0)


def test_p_value_is_close_to_students_where_that_is_exact() -> None:
    values = np.random.default_rng(8).normal(0.3, 1, 40)
    ours = bootstrap_mean(values, num_resamples=50_000, seed=0).p_value()
    assert ours == pytest.approx(stats.ttest_1samp(values, 0).pvalue, rel=0.25)


def test_p_value_of_another_null_value() -> None:
    values = np.random.default_rng(8).normal(0.5, 0.1, 50)
    estimate = bootstrap_mean(values, num_resamples=2000, seed=0)
    assert estimate.p_value() < 0.001
    assert estimate.p_value(float(values.mean())) > 0.9


def test_few_resamples_do_not_hide_a_clear_effect_among_many_candidates() -> None:
    values = np.random.default_rng(1).normal(3, 1, 12)
    p = bootstrap_mean(values, num_resamples=1000, seed=0).p_value()
    assert p == pytest.approx(1 / 1001)
    assert adjust_p_values([p] + [1.0] * 19, "holm")[0] < 0.05


def test_edges() -> None:
    empty = bootstrap_mean(np.array([]), num_resamples=1000, seed=0)
    assert (empty.mean, empty.interval(0.95), empty.p_value()) == (None, (None, None), 1.0)
    one = bootstrap_mean(np.array([4.0]), num_resamples=1000, seed=0)
    assert (one.mean, one.interval(0.95), one.p_value()) == (4.0, (None, None), 1.0)
    same = bootstrap_mean(np.full(20, 0.1), num_resamples=1000, seed=0)
    assert same.interval(0.95) == (same.mean, same.mean)
    assert same.p_value() == pytest.approx(1 / 1001)
    zeros = bootstrap_mean(np.zeros(20), num_resamples=1000, seed=0)
    assert (zeros.interval(0.95), zeros.p_value()) == ((0.0, 0.0), 1.0)
    two = bootstrap_mean(np.array([1.0, 1.4]), num_resamples=1000, seed=0)
    assert two.p_value() > 0.05


def test_holm_and_bonferroni_by_hand() -> None:
    p = [0.04, 0.01, 0.03]
    assert adjust_p_values(p, "holm") == pytest.approx([0.06, 0.03, 0.06])
    assert adjust_p_values(p, "bonferroni") == pytest.approx([0.12, 0.03, 0.09])
    assert adjust_p_values(p, "none") == p
    assert adjust_p_values([0.9, 0.8], "holm") == [1.0, 1.0]
    assert adjust_p_values([], "holm") == []


@pytest.mark.parametrize("num_prompts", [1, 2, 97, 1 << 16, 50_000, 3 * 2**29 + 1])
def test_draws_are_those_of_numpy(num_prompts: int) -> None:
    # The last one refuses a quarter of all words.
    draws, rng = _Draws(num_prompts, 42), np.random.default_rng(42)
    for count in (1, 3, 1000, 1, 4097):
        expected = rng.integers(0, num_prompts, size=count, dtype=np.int32)
        np.testing.assert_array_equal(draws.take(count), expected)


def test_means_are_those_of_resamples_drawn_at_once() -> None:
    values = np.random.default_rng(0).normal(3, 2, 311)
    drawn = np.random.default_rng(7).integers(0, 311, size=(1000, 311), dtype=np.int32)
    found = bootstrap_mean(values, num_resamples=1000, seed=7).sorted_means
    np.testing.assert_array_equal(found, np.sort(values[drawn].mean(axis=1)))
