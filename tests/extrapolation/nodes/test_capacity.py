"""Tasks that no node can hold are refused before anything is written; Ray would wait for ever."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from expo_ray.errors import ConfigError
from expo_ray.extrapolation import extrapolate
from expo_ray.extrapolation.nodes import capacity, fanout
from expo_ray.extrapolation.planning.plan import build_plan
from expo_ray.extrapolation.shards.tasks import WRITE, ShardTask, shard_task
from tests.extrapolation.synthetic import noise, write

Pair = tuple[Path, Path]
GIB = 1 << 30


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp("capacity")
    before = {"w": noise((64, 48), torch.bfloat16, 1)}
    after = {"w": before["w"] + before["w"] / 64}
    return write(folder / "initial", before), write(folder / "aligned", after)


def tasks(pair: Pair, *transforms: str) -> list[ShardTask]:
    plan = build_plan(*pair, transforms=transforms)
    return [shard_task(plan, shard, WRITE, ()) for shard in plan.shards]


def nodes(*memory_bytes: int) -> list[dict[str, Any]]:
    return [{"Resources": {"CPU": 1.0, "memory": float(size)}} for size in memory_bytes]


def test_the_largest_node_decides(pair: Pair, caplog: pytest.LogCaptureFixture) -> None:
    work = tasks(pair)
    capacity.refuse_too_big_for_nodes(work, nodes(GIB // 8, GIB), may_grow=False)
    with pytest.raises(ConfigError, match="more memory than there is") as caught:
        capacity.refuse_too_big_for_nodes(work, nodes(GIB // 8, GIB // 2), may_grow=False)
    assert str(GIB // 2) in str(caught.value.got)
    assert str(capacity.WORKER_MEMORY_BYTES) in str(caught.value.expected)
    with pytest.raises(ConfigError, match="no node of the cluster has a CPU"):
        capacity.refuse_too_big_for_nodes(work, [], may_grow=False)
    capacity.refuse_too_big_for_nodes([], [], may_grow=False)
    assert not caplog.messages
    capacity.refuse_too_big_for_nodes(work, [], may_grow=True)
    capacity.refuse_too_big_for_nodes(work, nodes(GIB // 2), may_grow=True)
    assert len(caplog.messages) == 2


def test_in_this_process_what_a_transform_takes_must_be_there(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (capacity.available_bytes() or GIB) > 0
    monkeypatch.setattr(capacity, "available_bytes", lambda: GIB // 8)
    options = {"alpha": 0.3, "address": "inline"}
    extrapolate(*pair, tmp_path / "plain", **options)
    with pytest.raises(ConfigError, match="more memory than there is"):
        extrapolate(*pair, tmp_path / "svd", transforms=["svd:rank=2"], **options)
    assert not (tmp_path / "svd").exists()


def test_on_ray_nothing_is_written_and_nothing_waits(
    ray_cluster: str, pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capacity, "WORKER_MEMORY_BYTES", 1 << 60)
    with pytest.raises(ConfigError, match="more memory than there is") as caught:
        extrapolate(*pair, tmp_path / "out", alpha=0.3, address=ray_cluster)
    assert caught.value.exit_code == 2
    monkeypatch.undo()
    monkeypatch.setattr(fanout, "worker_nodes", list)
    with pytest.raises(ConfigError, match="no node of the cluster has a CPU"):
        extrapolate(*pair, tmp_path / "out", alpha=0.3, address=ray_cluster)
    assert not (tmp_path / "out").exists()
