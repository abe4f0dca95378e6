"""When an open loop intends to send."""

from __future__ import annotations

import numpy as np

from expo_ray.loadtests.options import Arrivals


def arrival_seconds(
    num_requests: int,
    *,
    rate: float,
    arrivals: Arrivals,
    seed: int,
    burstiness: float = 1.0,
    ramp_seconds: float = 0.0,
) -> list[float]:
    """Return the intended send times, ascending from 0 (without a ramp).

    Args:
        num_requests: How many at the full rate; those of the ramp come on top.
        rate: Mean requests per second.
        arrivals: `constant` spaces them evenly, `poisson` by exponential gaps, `gamma` by gaps
            with the shape `burstiness`.
        seed: The same seed gives the same times, so that two models meet the same bursts.
        burstiness: Shape of the gamma gaps: below 1 burstier than Poisson, above 1 more even.
        ramp_seconds: The rate rises linearly from 0 during this time.
    """
    expected = num_requests + rate * ramp_seconds / 2
    num_drawn = int(2 * expected) + 20
    while True:
        times = _full_rate(num_drawn, rate, arrivals, seed, burstiness)
        if ramp_seconds:
            times = _ramped(times, ramp_seconds)
        num_ramp = int(np.searchsorted(times, ramp_seconds))
        if num_ramp + num_requests <= num_drawn:
            return [float(t) for t in times[: num_ramp + num_requests]]
        num_drawn *= 2


def _full_rate(
    num: int, rate: float, arrivals: Arrivals, seed: int, burstiness: float
) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    random = np.random.default_rng(seed)
    if arrivals == "constant":
        gaps = np.full(num, 1 / rate)
    elif arrivals == "poisson":
        gaps = random.exponential(1 / rate, num)
    else:
        gaps = random.gamma(burstiness, 1 / (rate * burstiness), num)
    return np.asarray(np.cumsum(gaps) - gaps[0])


def _ramped(
    times: np.ndarray[tuple[int], np.dtype[np.float64]], ramp_seconds: float
) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Stretch time so that the rate rises linearly, for any process (time rescaling).

    At the full rate the time u passes as many requests as the ramp does up to t, with
    u = t^2 / (2 ramp) inside it.
    """
    inside = np.sqrt(2 * ramp_seconds * times)
    return np.where(times < ramp_seconds / 2, inside, times + ramp_seconds / 2)
