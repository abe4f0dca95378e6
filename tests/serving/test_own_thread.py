"""A replica computes with its share of the cores, and with what the environment says."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from expo_ray.rewards import RewardModelSpec, RewardScore
from expo_ray.rewards.kinds.kind import RewardKind
from expo_ray.rewards.kinds.registry import REWARD_KINDS
from expo_ray.serving import RewardReplicas, launching
from expo_ray.serving.launching import replica_threads
from expo_ray.serving.own_thread import OwnThread

CORES = os.cpu_count() or 1


class Threads:
    """Rewards every chat with the number of torch's threads where it is scored."""

    name, revision, settings, needs_reference = "threads:", "1", "", False

    def score(self, chats: Sequence[Any], references: Any = None) -> list[RewardScore]:
        return [RewardScore(reward=float(torch.get_num_threads()), tokens=0) for _ in chats]


def _load(spec: RewardModelSpec, **how: Any) -> Threads:
    return Threads()


KIND = RewardKind(
    name="threads", prefix="threads:", form="threads:", parse=lambda text: ("", {}), load=_load
)


@pytest.mark.parametrize(
    ("asked", "expected"), [(1, 1), (CORES, CORES), (CORES + 5, CORES), (None, None)]
)
def test_torch_computes_with_the_threads_that_are_asked_for(
    asked: int | None, expected: int | None
) -> None:
    before = torch.get_num_threads()
    try:
        found = asyncio.run(OwnThread("a", asked).run(torch.get_num_threads))
    finally:
        torch.set_num_threads(before)
    assert found == (before if expected is None else expected)


def test_work_is_done_one_after_the_other() -> None:
    order: list[str] = []

    async def both() -> None:
        thread = OwnThread("a")
        await asyncio.gather(*(thread.run(order.append, name) for name in "abc"))

    asyncio.run(both())
    assert order == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("deployment", "expected"),
    [
        ({"num_replicas": 1}, 16),
        ({"num_replicas": 2}, 12),
        ({"num_replicas": 5}, 4),
        ({"num_replicas": 100}, 1),
        ({"autoscaling_config": {"min_replicas": 1, "max_replicas": 3}}, 8),
    ],
)
def test_replicas_share_the_cores_and_stay_on_their_node(
    monkeypatch: pytest.MonkeyPatch, deployment: dict[str, Any], expected: int
) -> None:
    nodes = [{"Resources": {"CPU": 16.0}}, {"Resources": {"CPU": 8.0}}]
    monkeypatch.setattr(launching, "worker_nodes", lambda: nodes)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert replica_threads(deployment) == expected


@pytest.mark.parametrize(("told", "expected"), [("3", 3), ("4,2", 4), ("0", 1), ("many", 1)])
def test_what_the_environment_says_counts(
    monkeypatch: pytest.MonkeyPatch, told: str, expected: int
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", told)
    assert replica_threads({"num_replicas": 1}) == expected


@pytest.mark.parametrize("num_threads", [1, min(2, CORES)])
def test_a_replica_is_not_held_to_the_one_cpu_that_keeps_its_place(
    ray_cluster: str, monkeypatch: pytest.MonkeyPatch, num_threads: int
) -> None:
    monkeypatch.setitem(REWARD_KINDS, KIND.name, KIND)
    monkeypatch.setenv("OMP_NUM_THREADS", str(num_threads))
    with RewardReplicas("threads:", self_test=False, use_cache=False) as replicas:
        [score] = replicas.score([[{"role": "assistant", "content": "a"}]])
    assert score.reward == num_threads
