from __future__ import annotations

import pytest

from expo_ray.errors import ConfigError
from expo_ray.loadtests.placement import choose_nodes
from expo_ray.proxies import is_loopback

A, B, C = (letter * 56 for letter in "abc")  # node ids have 28 bytes
NODES = [{"NodeID": A}, {"NodeID": B, "Labels": {"role": "load"}}, {"NodeID": C}]


def choose(*replica_nodes: str, here: str | None = None, num_clients: int | None = None, **labels):  # type: ignore[no-untyped-def]
    return choose_nodes(
        NODES,
        replica_nodes=set(replica_nodes),
        here=here,
        num_clients=num_clients,
        labels=labels,
    )


def test_clients_keep_off_the_replicas() -> None:
    placement = choose(A, C, num_clients=3)
    assert (placement.node_ids, placement.beside_replicas) == ((B,), False)
    assert placement.num_clients == 3
    spread = choose(A)
    assert (spread.node_ids, spread.num_clients) == ((B, C), 2)
    nodes = [spread.options(i)["scheduling_strategy"].node_id for i in range(3)]
    assert nodes == [B, C, B]
    assert spread.options(0)["scheduling_strategy"].soft is False


def test_where_replicas_are_everywhere_that_is_told() -> None:
    placement = choose(A, B, C)
    assert (placement.node_ids, placement.beside_replicas) == ((A, B, C), True)


def test_a_loopback_service_is_reached_from_its_own_machine_alone() -> None:
    placement = choose(B, here=A)
    assert (placement.node_ids, placement.beside_replicas) == ((A,), True)
    for host, loops in (
        ("127.0.0.1", True),
        ("localhost", True),
        ("10.0.0.1", False),
        (None, False),
    ):
        assert is_loopback(host) is loops


def test_labels_decide() -> None:
    assert choose(A, role="load").node_ids == (B,)
    assert choose(B, role="load").beside_replicas is True
    with pytest.raises(ConfigError, match="labels"):
        choose(role="other")
    with pytest.raises(ConfigError, match="reaches the service"):
        choose(here=A, role="load")
