"""When requests go out: the two loops. They know a clock and a way to send, nothing else.

Every request has a second at which it is due, and latency counts from there, not from when it was
sent: a client that a stalled service holds up would else leave the waiting out of its figures
(coordinated omission).

Tests run them on an event loop whose time is made up, and so exactly.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from expo_ray.loadtests.records import Job, RequestRecord

Clock = Callable[[], float]
"""Seconds since second 0 of the point."""

Send = Callable[[Job, float, Clock], Awaitable[RequestRecord]]
"""Sends a job that was due at some second, and returns what happened."""

Sleep = Callable[[float], Awaitable[None]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Ramp:
    """How one of the requests in flight of a closed loop begins."""

    job: Job
    """Sent, again and again, until the ramp ends: load that is not measured."""
    begin_seconds: float
    end_seconds: float


async def closed_loop(
    send: Send, jobs: Sequence[Job], *, concurrency: int, clock: Clock, ramp: Sequence[Ramp] = ()
) -> list[RequestRecord]:
    """Keep `concurrency` requests in flight until the jobs are done.

    A request is due the moment that the one before it has ended.

    Args:
        send: Sends one request.
        jobs: Requests in order.
        concurrency: How many in flight.
        clock: Seconds since second 0.
        ramp: How each of the requests in flight begins; empty begins with all at once.

    Returns:
        Records in the order in which the requests ended.
    """
    remaining = iter(jobs)
    records: list[RequestRecord] = []

    async def worker(start: Ramp | None) -> None:
        due = 0.0
        if start is not None:
            due = start.begin_seconds
            await asyncio.sleep(due - clock())
            while due < start.end_seconds:
                records.append(await send(start.job, due, clock))
                due = records[-1].done_seconds
        for job in remaining:
            records.append(await send(job, due, clock))
            due = records[-1].done_seconds

    starts: Sequence[Ramp | None] = ramp or [None] * concurrency
    await asyncio.gather(*(worker(start) for start in starts))
    return records


async def open_loop(
    send: Send,
    jobs: Sequence[Job],
    *,
    due_seconds: Sequence[float],
    clock: Clock,
    sleep: Sleep = asyncio.sleep,
) -> list[RequestRecord]:
    """Send every request when it is due, however many are still in flight.

    Args:
        send: Sends one request.
        jobs: Requests in order.
        due_seconds: When each is due, ascending.
        clock: Seconds since second 0.
        sleep: Waits so many seconds, at once where they are negative.

    Returns:
        Records in the order of the jobs.
    """
    sending = []
    for job, due in zip(jobs, due_seconds, strict=True):
        await sleep(due - clock())
        sending.append(asyncio.ensure_future(send(job, due, clock)))
    return list(await asyncio.gather(*sending))
