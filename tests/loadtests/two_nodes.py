"""Load tests on a cluster of two nodes, one of which has no CPU for replicas. Run as a script.

Arguments: MODEL, PROMPTS, OUTPUT. Prints one JSON object. It needs a Ray of its own.
"""

from __future__ import annotations

import json
import socket
import sys
from pathlib import Path

import ray
from ray.cluster_utils import Cluster

from expo_ray.loadtests import LoadtestOptions, loadtest, loadtest_scaling


def main(model: str, prompts: str, output: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # sends nothing, and tells which address would be used
        address = probe.getsockname()[0]
    # Not the loopback address: that one reaches no other node.
    head = {"num_cpus": 4, "node_ip_address": address}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    # Nodes of one machine share its address, by which a service is found: give this one another.
    other = cluster.add_node(num_cpus=0, node_ip_address="127.0.0.2", labels={"role": "load"})
    ray.init(address=cluster.address, log_to_driver=False)
    found = {"head": ray.get_runtime_context().get_node_id(), "other": other.node_id}
    load = {"prompts": prompts, "num_requests": 4, "max_tokens": 2, "address": cluster.address}
    try:
        for name, options in (
            # First: the address on which Serve listens is fixed for the life of the cluster.
            ("everywhere", LoadtestOptions(host="0.0.0.0")),
            ("labelled", LoadtestOptions(host="0.0.0.0", client_labels={"role": "load"})),
            ("asked", LoadtestOptions(host="0.0.0.0", num_clients=3)),
        ):
            folder = f"{output}/{name}"
            summary = loadtest(model, output=folder, concurrency=[3], options=options, **load)
            found[name] = {**summary["clients"], "completed": summary["points"][0]["completed"]}
        scaling = {"replicas": [1], "concurrency": 2, "rounds": 1, **load}
        loadtest_scaling(model, output=f"{output}/scaling", **scaling)
        for way in ("proxy", "direct"):
            file = Path(output) / "scaling" / f"replicas-1-{way}" / "round-0" / "summary.json"
            found[way] = json.loads(file.read_text())["clients"]
    finally:
        ray.shutdown()
        cluster.shutdown()
    sys.stdout.write(f"{json.dumps(found)}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
