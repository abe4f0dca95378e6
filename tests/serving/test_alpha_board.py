"""The protocol of a change alone: real board, members and actors; weights that are a number."""

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import pytest
import ray
from ray.exceptions import RayActorError

from expo_ray.errors import ServingError, ShardError
from expo_ray.serving.alpha_board import find_or_start_board, stop_board
from expo_ray.serving.alpha_member import AlphaMember
from expo_ray.serving.loaded import NOTHING_LOADED, Loaded
from expo_ray.serving.weights_gate import WeightsGate

APP = "alpha-board-test"


@ray.remote(num_cpus=0)
class Replica:
    """Answers with its weights: an alpha."""

    def __init__(self, board: Any, name: str, refuses: tuple[float, ...] = ()) -> None:
        self.gate = WeightsGate()
        self.loaded = NOTHING_LOADED
        self.refuses = refuses
        self.member = AlphaMember(
            board,
            name=name,
            actor=ray.get_runtime_context().current_actor,
            gate=self.gate,
            load=self.load,
        )

    async def load(self, alpha: float) -> Loaded:
        assert self.gate.num_inside == 0, "weights are replaced while nobody is inside"
        self.loaded = NOTHING_LOADED
        await asyncio.sleep(0.05)
        error = ShardError("overflow") if alpha in self.refuses else None
        digest = None if error else f"digest of {alpha}"
        self.loaded = Loaded(weights_digest=digest, max_model_len=1, error=error)
        return self.loaded

    async def join(self) -> str | None:
        return (await self.member.join()).weights_digest

    async def answer(self, seconds: float = 0.0) -> tuple[str | None, str | None]:
        async with self.gate.reading():
            before = self.loaded.weights_digest
            await asyncio.sleep(seconds)
            return before, self.loaded.weights_digest


@pytest.fixture
def board(ray_cluster: str) -> Iterator[Any]:
    yield find_or_start_board(APP, 0.5, version="1")
    stop_board(APP, version="1")


def start(board: Any, *names: str, **more: Any) -> list[Any]:
    replicas = [Replica.remote(board, name, **more) for name in names]
    ray.get([replica.join.remote() for replica in replicas])
    return replicas


def change(board: Any, alpha: float, drain_seconds: float = 30.0) -> Any:
    return ray.get(board.change.remote(alpha, drain_seconds))


def test_all_change_after_those_inside_have_finished(board: Any) -> None:
    replicas = start(board, "a", "b")
    inside = [replica.answer.remote(1.0) for replica in replicas]
    time.sleep(0.3)
    changing = board.change.remote(0.3, 30.0)
    time.sleep(0.3)
    waiting = [replica.answer.remote() for replica in replicas]
    busy = change(board, 0.9)
    assert isinstance(busy, ServingError)
    assert "already" in busy.message
    assert ray.get(changing) is None
    assert set(ray.get(inside)) == {("digest of 0.5", "digest of 0.5")}
    assert set(ray.get(waiting)) == {("digest of 0.3", "digest of 0.3")}
    state = ray.get(board.state.remote())
    assert (state["alpha"], state["generation"], state["changing"]) == (0.3, 2, False)
    assert {r["weights_digest"] for r in state["replicas"].values()} == {"digest of 0.3"}
    # One that comes later, as after a restart or by the autoscaler, has the current alpha.
    [late] = start(board, "late")
    assert ray.get(late.answer.remote())[0] == "digest of 0.3"


def test_one_that_fails_is_ended_and_all_that_fail_change_nothing(board: Any) -> None:
    fine = start(board, "fine")[0]
    failing = start(board, "failing", refuses=(0.3,))[0]
    assert change(board, 0.3) is None
    assert ray.get(fine.answer.remote())[0] == "digest of 0.3"
    with pytest.raises(RayActorError):
        ray.get(failing.answer.remote())
    assert list(ray.get(board.state.remote())["replicas"]) == ["fine"]

    ray.kill(fine)
    both = start(board, "c", "d", refuses=(7.0,))
    problem = change(board, 7.0)
    assert isinstance(problem, ShardError)
    assert {ray.get(r.answer.remote())[0] for r in both} == {"digest of 0.3"}
    state = ray.get(board.state.remote())
    assert (state["alpha"], state["generation"]) == (0.3, 2)


def test_requests_that_do_not_finish_in_time_stop_the_change(board: Any) -> None:
    slow, other = start(board, "slow", "other")
    inside = slow.answer.remote(3.0)
    time.sleep(0.3)
    problem = change(board, 0.3, drain_seconds=0.2)
    assert isinstance(problem, ServingError)
    assert "in time" in problem.message
    assert [ray.get(r.answer.remote())[0] for r in (slow, other)] == ["digest of 0.5"] * 2
    assert ray.get(inside) == ("digest of 0.5", "digest of 0.5")
    assert change(board, 0.3) is None


def test_a_board_that_dies_learns_from_the_replicas(board: Any) -> None:
    replicas = start(board, "a", "b")
    assert change(board, 0.3) is None
    ray.kill(board, no_restart=False)
    [late] = start(board, "late")
    assert {ray.get(r.answer.remote())[0] for r in (*replicas, late)} == {"digest of 0.3"}
    assert change(board, 0.7) is None
    assert {ray.get(r.answer.remote())[0] for r in (*replicas, late)} == {"digest of 0.7"}
