from __future__ import annotations

import numpy as np
import pytest

from expo_ray.loadtest.schedule import arrival_seconds


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
