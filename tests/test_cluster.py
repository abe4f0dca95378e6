"""Connecting to Ray: an address where nobody answers is an error at once and not a long wait."""

from __future__ import annotations

import time

import pytest

from expo_ray import cluster
from expo_ray.errors import ConfigError, WorkError
from tests.head_node import free_port


@pytest.mark.timeout(60)
@pytest.mark.parametrize("form", ["{}:{}", "ray://{}:{}"])
@pytest.mark.parametrize("by_variable", [False, True])
def test_a_cluster_that_is_not_there_is_refused_at_once(
    form: str, by_variable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = form.format("127.0.0.1", free_port())
    if by_variable:
        monkeypatch.setenv("RAY_ADDRESS", address)
    started = time.monotonic()
    with pytest.raises(ConfigError, match="cannot connect to the Ray cluster") as caught:
        cluster.require_cluster(None if by_variable else address)
    assert time.monotonic() - started < 2 * cluster.PROBE_SECONDS
    assert address in str(caught.value.got)
    assert "ray start --head" in str(caught.value.hint)


@pytest.mark.parametrize("address", ["127.0.0.1:port", "no-such-host.invalid:6379", ":6379"])
def test_an_address_that_cannot_be_one_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match="cannot connect"):
        cluster.require_cluster(address)


def test_what_ray_finds_by_itself_passes() -> None:
    cluster.require_cluster("local")
    cluster.require_cluster("auto")
    with pytest.raises(ConfigError, match="needs Ray"):
        cluster.require_cluster("inline")


def test_an_answer_that_does_not_come_is_told_and_not_waited_for(ray_cluster: str) -> None:
    import ray

    ref = ray.remote(num_cpus=0)(lambda: time.sleep(3600)).remote()
    with pytest.raises(WorkError, match="did not answer in time") as caught:
        cluster.get_within(0.5, [ref], what="a task of this test")
    assert caught.value.where == "a task of this test"
    assert "0.5 s" in str(caught.value.expected)
    ray.cancel(ref, force=True)
    assert cluster.get_within(60, ray.put(3), what="a number") == 3
