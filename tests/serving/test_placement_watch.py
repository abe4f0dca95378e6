"""Replicas that wait for room, told from those that have it and start slowly."""

from __future__ import annotations

import time

import ray

from expo_ray.serving.placement_watch import num_placed


class Slow:
    def __init__(self) -> None:
        time.sleep(60)


def test_a_replica_that_is_only_slow_does_not_wait_for_room(ray_cluster: str) -> None:
    names = ("SERVE_REPLICA::slow-app#a#1", "SERVE_REPLICA::homeless-app#a#1")
    started = [
        ray.remote(Slow).options(name=name, num_cpus=cpus).remote()
        for name, cpus in zip(names, (0, 1000), strict=True)
    ]
    try:
        deadline = time.monotonic() + 60
        while not num_placed("slow-app"):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert (num_placed("slow"), num_placed("homeless-app")) == (0, 0)
    finally:
        for one in started:
            ray.kill(one)
