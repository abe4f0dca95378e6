from __future__ import annotations

import numpy as np
import pytest

from expo_ray.loadtests.schedule import arrival_seconds


def test_constant_arrivals() -> None:
    assert arrival_seconds(4, rate=2.0, arrivals="constant", seed=0) == [0.0, 0.5, 1.0, 1.5]


def test_poisson_arrivals_have_exponential_gaps_and_a_seed() -> None:
    times = arrival_seconds(20_000, rate=4.0, arrivals="poisson", seed=1)
    gaps = np.diff(times)
    assert times[0] == 0.0
    assert gaps.min() >= 0
    assert gaps.mean() == pytest.approx(0.25, rel=0.03)
    assert gaps.std() == pytest.approx(0.25, rel=0.05)
    assert times == arrival_seconds(20_000, rate=4.0, arrivals="poisson", seed=1)
    assert times != arrival_seconds(20_000, rate=4.0, arrivals="poisson", seed=2)


def test_gamma_arrivals_are_as_bursty_as_asked() -> None:
    for burstiness in (0.25, 4.0):
        times = arrival_seconds(40_000, rate=4.0, arrivals="gamma", seed=1, burstiness=burstiness)
        gaps = np.diff(times)
        assert gaps.mean() == pytest.approx(0.25, rel=0.04)
        assert gaps.std() / gaps.mean() == pytest.approx(burstiness**-0.5, rel=0.05)


def test_a_ramp_rises_linearly_and_comes_on_top() -> None:
    times = arrival_seconds(100, rate=10.0, arrivals="constant", seed=0, ramp_seconds=4.0)
    ramp = [t for t in times if t < 4.0]
    assert len(ramp) == 20  # half of what the full rate would send
    assert len(times) == 120
    assert sum(t < 2.0 for t in ramp) == 5  # a quarter of them in the first half
    assert np.diff(times[20:]) == pytest.approx(0.1)
