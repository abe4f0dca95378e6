"""The protocol of a change alone: real board, members and actors; weights that are a number."""

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError

from expo_ray.errors import ServingError, ShardError
from expo_ray.serving.alpha_board import AlphaBoard, find_or_start_board, stop_board
from expo_ray.serving.alpha_member import AlphaMember
from expo_ray.serving.alpha_memory import AlphaMemory, board_name
from expo_ray.serving.alpha_orders import Report, Target
from expo_ray.serving.loaded import NOTHING_LOADED, Loaded
from expo_ray.serving.weights_gate import WeightsGate

APP = "alpha-board-test"


def find(version: str = "1") -> Any:
    return find_or_start_board(APP, 0.5, version=version)


@ray.remote(num_cpus=0)
class Replica:
    """Answers with its weights: an alpha."""

    def __init__(self, name: str, refuses: tuple[float, ...] = ()) -> None:
        self.gate = WeightsGate()
        self.loaded = NOTHING_LOADED
        self.refuses = refuses
        self.member = AlphaMember(
            find,
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
    yield find()
    stop_board(APP, version="1")


def start(*names: str, **more: Any) -> list[Any]:
    replicas = [Replica.remote(name, **more) for name in names]
    ray.get([replica.join.remote() for replica in replicas])
    return replicas


def change(board: Any, alpha: float, drain_seconds: float = 30.0) -> Any:
    return ray.get(board.change.remote(alpha, drain_seconds))


def test_all_change_after_those_inside_have_finished(board: Any) -> None:
    replicas = start("a", "b")
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
    [late] = start("late")
    assert ray.get(late.answer.remote())[0] == "digest of 0.3"


def test_one_that_fails_is_ended_and_all_that_fail_change_nothing(board: Any) -> None:
    fine = start("fine")[0]
    failing = start("failing", refuses=(0.3,))[0]
    assert change(board, 0.3) is None
    assert ray.get(fine.answer.remote())[0] == "digest of 0.3"
    with pytest.raises(RayActorError):
        ray.get(failing.answer.remote())
    assert list(ray.get(board.state.remote())["replicas"]) == ["fine"]

    ray.kill(fine)
    both = start("c", "d", refuses=(7.0,))
    problem = change(board, 7.0)
    assert isinstance(problem, ShardError)
    assert {ray.get(r.answer.remote())[0] for r in both} == {"digest of 0.3"}
    state = ray.get(board.state.remote())
    assert (state["alpha"], state["generation"]) == (0.3, 2)


def test_requests_that_do_not_finish_in_time_stop_the_change(board: Any) -> None:
    slow, other = start("slow", "other")
    inside = slow.answer.remote(3.0)
    time.sleep(0.3)
    problem = change(board, 0.3, drain_seconds=0.2)
    assert isinstance(problem, ServingError)
    assert "in time" in problem.message
    assert [ray.get(r.answer.remote())[0] for r in (slow, other)] == ["digest of 0.5"] * 2
    assert ray.get(inside) == ("digest of 0.5", "digest of 0.5")
    assert change(board, 0.3) is None


def answers(*replicas: Any) -> set[str | None]:
    return {ray.get(replica.answer.remote())[0] for replica in replicas}


def ended(replica: Any) -> bool:
    try:
        ray.get(replica.answer.remote(), timeout=1)
    except RayActorError:
        return True
    except GetTimeoutError:  # its gate is closed
        pass
    return False


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def change_with_one_inside(board: Any, alpha: float, replica: Any) -> tuple[Any, Any]:
    """Return a change that waits, and the request for which it does."""
    inside = replica.answer.remote(1.0)
    time.sleep(0.3)
    changing = board.change.remote(alpha, 30.0)
    time.sleep(0.3)
    return changing, inside


def test_a_client_that_goes_away_amid_a_change(board: Any) -> None:
    """Serve cancels what the client had asked for, and whatever that had asked for in turn."""
    replicas = start("a", "b")
    changing, inside = change_with_one_inside(board, 0.3, replicas[0])
    ray.cancel(changing)
    with pytest.raises(RayError):
        ray.get(changing)
    assert answers(*replicas) == {"digest of 0.3"}
    assert ray.get(inside) == ("digest of 0.5", "digest of 0.5")
    assert ray.get(board.join.remote(), timeout=10).alpha == 0.3
    assert change(board, 0.7) is None
    assert answers(*replicas) == {"digest of 0.7"}


def test_a_board_that_dies_knows_what_was_current(board: Any) -> None:
    replicas = start("a", "b")
    assert change(board, 0.3) is None
    ray.kill(board, no_restart=False)
    [late] = start("late")
    assert answers(*replicas, late) == {"digest of 0.3"}
    assert change(board, 0.7) is None
    assert answers(*replicas, late) == {"digest of 0.7"}
    # Amid a change, that nobody leads any more then: the gates open again.
    changing, inside = change_with_one_inside(board, 0.9, late)
    ray.kill(board, no_restart=False)
    with pytest.raises(RayActorError):
        ray.get(changing)
    assert answers(*replicas, late) == {"digest of 0.7"}
    assert ray.get(inside)[1] == "digest of 0.7"
    for replica in (*replicas, late):
        ray.kill(replica)
    ray.kill(board, no_restart=False)
    [following] = start("next")
    assert answers(following) == {"digest of 0.7"}


def test_a_board_that_ends_is_looked_up_again_and_inherits_nothing(board: Any) -> None:
    [replica] = start("a")
    assert change(board, 0.3) is None
    other = find("2")
    assert ray.get(other.state.remote())["alpha"] == 0.5
    stop_board(APP, version="2")
    stop_board(APP, version="1")
    wait_until(lambda: answers(replica) == {"digest of 0.5"})
    assert list(ray.get(find().state.remote())["replicas"]) == ["a"]


def test_one_that_cannot_follow_outside_a_change_is_ended(board: Any) -> None:
    failing, fine = start("failing", refuses=(0.3,)) + start("fine")
    AlphaMemory(board_name(APP, "1")).keep(2, 0.3)
    ray.kill(board, no_restart=False)
    wait_until(lambda: ended(failing))
    wait_until(lambda: answers(fine) == {"digest of 0.3"})
    assert list(ray.get(board.state.remote())["replicas"]) == ["fine"]


def test_two_changes_at_once(ray_cluster: str) -> None:
    async def both() -> list[ServingError | None]:
        board = AlphaBoard(0.5, APP, "at-once")
        await board.enter("a", joined := held(await board.join()), None)

        async def follow(report: Report) -> None:
            while target := await board.follow("a", report, None):
                report = held(target)

        following = asyncio.create_task(follow(joined))
        async with board._moved:  # neither gets past its first wait before both have begun
            changes = [asyncio.create_task(board.change(a, 30.0)) for a in (0.3, 0.7)]
            await asyncio.sleep(0.1)
        made = await asyncio.gather(*changes)
        following.cancel()
        board._memory.forget()
        return made

    first, second = asyncio.run(both())
    assert first is None
    assert isinstance(second, ServingError)
    assert "already" in second.message


def held(target: Target) -> Report:
    return Report(
        sequence=target.sequence,
        generation=target.generation,
        alpha=target.alpha,
        weights_digest=str(target.alpha),
    )
