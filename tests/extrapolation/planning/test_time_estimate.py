"""The planner's schedule beside its lower bound, from a laptop to 256 nodes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from expo_ray.errors import ConfigError
from expo_ray.extrapolation import extrapolate
from expo_ray.extrapolation.planning.time_estimate import estimate, lower_bound, simulate

GB = 10.0**9
NODES = [1, 4, 16, 64, 256]


def shards(total_bytes: float, shard_bytes: float, seed: int) -> list[float]:
    """Files filled with whole tensors end a little below the limit; the last one holds the rest."""
    generator = np.random.default_rng(seed)
    sizes: list[float] = []
    while sum(sizes) < total_bytes:
        fill = shard_bytes * (1 - 0.1 * generator.random())
        sizes.append(min(fill, total_bytes - sum(sizes)))
    return [3 * size for size in sizes]  # two inputs and one output


@pytest.mark.parametrize("num_nodes", NODES)
@pytest.mark.parametrize("total", [140 * GB, 810 * GB, 1342 * GB])  # 70B, 405B, 671B
@pytest.mark.parametrize("seed", range(3))
def test_within_five_percent_of_the_lower_bound(total: float, num_nodes: int, seed: int) -> None:
    sizes = shards(total, total / (20 * num_nodes), seed)
    speeds = [2 * GB] * num_nodes
    assert simulate(sizes, speeds) <= 1.05 * lower_bound(sizes, speeds)


@pytest.mark.parametrize("num_nodes", NODES)
def test_default_shards_of_a_70b_model(num_nodes: int) -> None:
    sizes = shards(140 * GB, 5 * GB, 0)
    speeds = [2 * GB] * num_nodes
    assert simulate(sizes, speeds) <= 1.05 * lower_bound(sizes, speeds)


@pytest.mark.parametrize("num_nodes", NODES[1:])
def test_stragglers_get_less_work(num_nodes: int) -> None:
    sizes = shards(1342 * GB, 1342 * GB / (40 * num_nodes), 1)
    speeds = [2 * GB] * num_nodes
    for node in range(0, num_nodes, 8):
        speeds[node] /= 2
    assert simulate(sizes, speeds) <= 1.05 * lower_bound(sizes, speeds)


@pytest.mark.parametrize("num_nodes", NODES[1:])
def test_a_lost_node_costs_its_share_and_one_task(num_nodes: int) -> None:
    sizes = shards(1342 * GB, 1342 * GB / (40 * num_nodes), 2)
    speeds = [2 * GB] * num_nodes
    whole = simulate(sizes, speeds)
    seconds = simulate(sizes, speeds, lost_at={0: whole / 2})
    # What the others must do at least: all but what the lost node had finished.
    bound = (sum(sizes) - speeds[0] * whole / 2) / sum(speeds[1:])
    assert bound <= seconds <= 1.05 * bound + max(sizes) / speeds[0]


def test_by_hand() -> None:
    assert simulate([3, 3, 2, 2, 2], [1, 1]) == 7
    assert lower_bound([3, 3, 2, 2, 2], [1, 1]) == 6
    assert lower_bound([5, 5, 5], [1, 1]) == 10
    assert simulate([4, 2], [2, 1]) == 2
    # The node is lost at 1; its task starts again when the other one is free.
    assert simulate([4, 4], [1, 1], lost_at={0: 1}) == 8
    # A task that was lost late waits for nobody, but cannot start before it was lost.
    assert simulate([6, 1], [1, 1], lost_at={0: 5}) == 11
    assert simulate([], [1]) == lower_bound([], [1]) == 0
    with pytest.raises(ValueError, match="lost"):
        simulate([4], [1], lost_at={0: 1})


def test_estimate_tells_idle_nodes() -> None:
    found = estimate([10 * GB] * 3, num_nodes=2, node_bandwidth=GB)
    assert (found["seconds"], found["lower_bound_seconds"]) == (20, 20)
    assert found["share_idle"] == 0.25


def test_dry_run_estimates(pico_pair: tuple[Path, Path], tmp_path: Path) -> None:
    options = {"alpha": [0.3, 0.5], "address": "inline"}
    planned = extrapolate(
        *pico_pair, tmp_path / "o", dry_run=True, nodes=4, node_bandwidth="1KB", **options
    )
    found = planned.plan["estimate"]
    moved = planned.plan["bytes_in"] + planned.plan["bytes_out"]
    assert found["seconds"] == pytest.approx(moved / 1000, rel=0.05)  # all in one batch
    assert found["share_idle"] == 0.75
    for wrong in ({"nodes": 4}, {"node_bandwidth": "1GB"}, {"nodes": 0, "node_bandwidth": "1GB"}):
        with pytest.raises(ConfigError, match="estimate"):
            extrapolate(*pico_pair, tmp_path / "o", dry_run=True, **wrong, **options)
    with pytest.raises(ConfigError, match="estimate"):
        extrapolate(*pico_pair, tmp_path / "o", nodes=4, node_bandwidth="1GB", **options)
    assert not (tmp_path / "o").exists()
