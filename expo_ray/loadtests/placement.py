"""Where the clients run: off the nodes that hold replicas, wherever there are other nodes.

A client on the machine of a replica takes its processor time and measures its own disturbance.
A service that listens on the loopback address alone leaves no choice: its clients run on the
driver's machine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import ray
from ray import serve
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from expo_ray.errors import ConfigError
from expo_ray.proxies import is_loopback
from expo_ray.serve_internals import serve_details

_MAX_CLIENTS = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Placement:
    """Nodes for the clients."""

    node_ids: tuple[str, ...]
    """Clients take them in turn."""
    beside_replicas: bool
    """No other node was left."""
    num_clients: int

    def options(self, index: int) -> dict[str, Any]:
        """Return the actor options of a client.

        It reserves no CPU, so that it starts beside replicas which have taken them all: clients
        wait for the network nearly all the time.
        """
        node = self.node_ids[index % len(self.node_ids)]
        # Hard: Ray places actors that reserve nothing at random, unless they must run on one node.
        strategy = NodeAffinitySchedulingStrategy(node_id=node, soft=False)
        return {"num_cpus": 0, "scheduling_strategy": strategy}


def place_clients(
    num_clients: int | None, *, url: str | None, labels: Mapping[str, str] | None = None
) -> Placement:
    """Choose the nodes for the clients.

    Args:
        num_clients: How many; None takes one per node, at least two.
        url: The service; a node of this cluster on which it listens counts as one with replicas.
            None for clients that reach replicas through their handle.
        labels: Ray node labels that a node must have.

    Raises:
        ConfigError: No node has these labels.
    """
    alive = [node for node in ray.nodes() if node["Alive"]]
    host = None if url is None else urlsplit(url).hostname
    return choose_nodes(
        alive,
        replica_nodes=_replica_nodes() | _nodes_of_host(alive, host),
        here=ray.get_runtime_context().get_node_id() if is_loopback(host) else None,
        num_clients=num_clients,
        labels=labels or {},
    )


def choose_nodes(
    alive: Sequence[Mapping[str, Any]],
    *,
    replica_nodes: Set[str],
    here: str | None,
    num_clients: int | None,
    labels: Mapping[str, str],
) -> Placement:
    """Choose among nodes as `ray.nodes()` describes them.

    Args:
        alive: The nodes.
        replica_nodes: Ids of those with replicas or the service itself.
        here: The only node that reaches the service, which listens there; None where all do.
        num_clients: See `place_clients`.
        labels: See `place_clients`.

    Raises:
        ConfigError: No node has these labels.
    """
    reaching = [node for node in alive if here in (None, node["NodeID"])]
    allowed = [
        node
        for node in reaching
        if all(node.get("Labels", {}).get(key) == value for key, value in labels.items())
    ]
    if not allowed:
        raise ConfigError(
            "no node that reaches the service has these labels",
            where="client_labels",
            got=dict(labels),
            hint="start a node with `ray start --labels ...`, or leave them out",
        )
    busy = replica_nodes | {here}
    free = [node for node in allowed if node["NodeID"] not in busy]
    nodes = free or allowed
    return Placement(
        node_ids=tuple(sorted(str(node["NodeID"]) for node in nodes)),
        beside_replicas=not free,
        num_clients=num_clients or min(_MAX_CLIENTS, max(2, len(nodes))),
    )


def _replica_nodes() -> set[str]:
    """Return the nodes on which Ray Serve of this cluster has replicas."""
    if not ray.is_initialized() or not serve.status().applications:
        return set()
    return {
        str(replica["node_id"])
        for app in serve_details().get("applications", {}).values()
        for deployment in app.get("deployments", {}).values()
        for replica in deployment.get("replicas", [])
        if replica.get("node_id")  # one that is starting has none yet
    }


def _nodes_of_host(nodes: list[dict[str, Any]], host: str | None) -> set[str]:
    names = ("NodeManagerAddress", "NodeManagerHostname", "NodeName")
    return {str(node["NodeID"]) for node in nodes if host in {node.get(name) for name in names}}
