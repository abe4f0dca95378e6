"""The Ray actor that sends requests: closed loop (so many in flight) or open loop (on time)."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ray

from expo_ray.loadtests.dispatch import Clock, Ramp, Send, closed_loop, open_loop
from expo_ray.loadtests.handle import HandleSender
from expo_ray.loadtests.records import Job, RequestRecord
from expo_ray.loadtests.stream import Endpoint, HttpSender

_LAG_SAMPLE_SECONDS = 0.02
_TIMER_STEP_SECONDS = 0.001


@dataclass(frozen=True, kw_only=True, slots=True)
class Sent:
    """What a client hands back."""

    records: list[RequestRecord]
    loop_lag_seconds: list[float]
    """How late the event loop woke up, sampled all along."""


class LoadClient:
    """Sends requests from one process. A plain class; `runner.py` makes it a Ray actor.

    Args:
        endpoint: The service.
        body: Fields of every request besides model and messages.
        timeout_seconds: Limit of one request.
        direct: Reach the replicas through their Serve handle, without proxy and HTTP.
    """

    def __init__(
        self, endpoint: Endpoint, body: dict[str, Any], timeout_seconds: float, direct: bool = False
    ) -> None:
        kind = HandleSender if direct else HttpSender
        self._sender: HandleSender | HttpSender = kind(endpoint, body, timeout_seconds)
        self._num_done = 0

    async def num_done(self) -> int:
        """Return how many requests have ended, in all."""
        return self._num_done

    async def unix_time(self) -> float:
        """Return this machine's clock, by which the driver corrects for its own."""
        return time.time()

    async def node_id(self) -> str:
        """Return the Ray node on which this client runs."""
        return str(ray.get_runtime_context().get_node_id())

    async def run_closed(
        self, jobs: Sequence[Job], *, concurrency: int, start_at: float, ramp: Sequence[Ramp] = ()
    ) -> Sent:
        """Keep `concurrency` requests in flight until the jobs are done.

        Args:
            jobs: Requests in order.
            concurrency: A request is due the moment that the one before it has ended.
            start_at: Unix time of second 0, by this machine's clock.
            ramp: See `closed_loop`.
        """

        async def loop(send: Send, clock: Clock) -> list[RequestRecord]:
            return await closed_loop(send, jobs, concurrency=concurrency, clock=clock, ramp=ramp)

        return await self._run(loop, start_at)

    async def run_open(
        self, jobs: Sequence[Job], *, due_seconds: Sequence[float], start_at: float
    ) -> Sent:
        """Send every request when it is due, however many are still in flight.

        Args:
            jobs: Requests in order.
            due_seconds: When each is due, ascending.
            start_at: Unix time of second 0, by this machine's clock.
        """

        async def loop(send: Send, clock: Clock) -> list[RequestRecord]:
            return await open_loop(
                send, jobs, due_seconds=due_seconds, clock=clock, sleep=precise_sleep
            )

        return await self._run(loop, start_at)

    async def _run(
        self, loop: Callable[[Send, Clock], Awaitable[list[RequestRecord]]], start_at: float
    ) -> Sent:
        origin = time.perf_counter() + start_at - time.time()

        def clock() -> float:
            return time.perf_counter() - origin

        async with self._sender as sender:

            async def send(job: Job, due: float, clock: Clock) -> RequestRecord:
                record = await sender.send(job, due, clock)
                self._num_done += 1
                return record

            await asyncio.sleep(-clock())
            async with _loop_lag() as lag:
                records = await loop(send, clock)
        return Sent(records=records, loop_lag_seconds=lag)


async def precise_sleep(seconds: float) -> None:
    """Sleep without the event loop's own delay: it wakes up in whole milliseconds, rounded up.

    The last of them passes in turns of the loop, in which other requests go on.
    """
    until = time.perf_counter() + seconds
    await asyncio.sleep(max(0.0, seconds - _TIMER_STEP_SECONDS))
    while time.perf_counter() < until:
        await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def _loop_lag() -> AsyncIterator[list[float]]:
    """Sample, in the background, by how much sleeping takes longer than asked for."""
    lag: list[float] = []

    async def sample() -> None:
        while True:
            before = time.perf_counter()
            await asyncio.sleep(_LAG_SAMPLE_SECONDS)
            lag.append(time.perf_counter() - before - _LAG_SAMPLE_SECONDS)

    task = asyncio.create_task(sample())
    try:
        yield lag
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
