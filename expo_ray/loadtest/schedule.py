"""When an open loop intends to send."""

from __future__ import annotations

from typing import Literal

import numpy as np


def arrival_seconds(
    num_requests: int, *, rate: float, arrivals: Literal["poisson", "constant"], seed: int
) -> list[float]:
    """Return the intended send times, ascending from 0.

    Args:
        num_requests: How many.
        rate: Mean requests per second.
        arrivals: `constant` spaces them evenly, `poisson` by exponential gaps.
        seed: The same seed gives the same times, so that two models meet the same bursts.
    """
    if arrivals == "constant":
        gaps = np.full(num_requests, 1 / rate)
    else:
        gaps = np.random.default_rng(seed).exponential(1 / rate, num_requests)
    return [float(t) for t in np.cumsum(gaps) - gaps[0]]
