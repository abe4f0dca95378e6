"""The Ray actor that sends requests: closed loop (so many in flight) or open loop (on time)."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

import aiohttp

from expo_ray.loadtest.records import Job, RequestRecord
from expo_ray.loadtest.stream import READ_BUFFER_BYTES, Endpoint, send_request

_LAG_SAMPLE_SECONDS = 0.02


class LoadClient:
    """Sends requests from one process. A plain class; `run.py` makes it a Ray actor.

    Args:
        endpoint: The service.
        body: Fields of every request besides model and messages.
        timeout_seconds: Limit of one request.
    """

    def __init__(self, endpoint: Endpoint, body: dict[str, Any], timeout_seconds: float) -> None:
        self._endpoint = endpoint
        self._body = body
        self._timeout_seconds = timeout_seconds
        self._num_done = 0

    async def num_done(self) -> int:
        """Return how many requests have ended, in all."""
        return self._num_done

    async def run_closed(
        self, jobs: Sequence[Job], *, concurrency: int, start_at: float
    ) -> tuple[list[RequestRecord], list[float]]:
        """Keep `concurrency` requests in flight until the jobs are done.

        Args:
            jobs: Requests in order.
            concurrency: A request is due the moment that the one before it has ended.
            start_at: Unix time of second 0.

        Returns:
            Records, and how late the event loop woke up.
        """
        remaining = iter(jobs)
        records: list[RequestRecord] = []

        async def worker(session: aiohttp.ClientSession, origin: float) -> None:
            due = 0.0
            for job in remaining:
                records.append(await self._send(session, job, origin=origin, due=due))
                due = records[-1].done_seconds

        async with self._session() as session:
            origin = await _wait_for_start(start_at)
            async with _loop_lag() as lag:
                await asyncio.gather(*(worker(session, origin) for _ in range(concurrency)))
        return records, lag

    async def run_open(
        self, jobs: Sequence[Job], *, due_seconds: Sequence[float], start_at: float
    ) -> tuple[list[RequestRecord], list[float]]:
        """Send every request when it is due, however many are still in flight.

        Args:
            jobs: Requests in order.
            due_seconds: When each is due, ascending.
            start_at: Unix time of second 0.

        Returns:
            Records, and how late the event loop woke up.
        """
        async with self._session() as session:
            origin = await _wait_for_start(start_at)
            sending = []
            async with _loop_lag() as lag:
                for job, due in zip(jobs, due_seconds, strict=True):
                    await asyncio.sleep(due - (time.perf_counter() - origin))
                    send = self._send(session, job, origin=origin, due=due)
                    sending.append(asyncio.create_task(send))
                records = await asyncio.gather(*sending)
        return records, lag

    async def _send(
        self, session: aiohttp.ClientSession, job: Job, *, origin: float, due: float
    ) -> RequestRecord:
        record = await send_request(
            session, self._endpoint, job, self._body, origin=origin, intended_seconds=due
        )
        self._num_done += 1
        return record

    def _session(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            # Servers drop idle connections after five seconds or more; stay clear of that race.
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=2),
            timeout=aiohttp.ClientTimeout(total=self._timeout_seconds),
            read_bufsize=READ_BUFFER_BYTES,
        )


def split_jobs(jobs: Sequence[Job], num_clients: int) -> Iterator[Sequence[Job]]:
    """Deal the jobs out to clients, in turn."""
    return (jobs[i::num_clients] for i in range(num_clients))


async def _wait_for_start(start_at: float) -> float:
    """Sleep until second 0 and return its `time.perf_counter()`."""
    origin = time.perf_counter() + start_at - time.time()
    await asyncio.sleep(origin - time.perf_counter())
    return origin


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
