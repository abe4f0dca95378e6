"""Both loops on a made-up clock: a service that stalls, a client that stalls."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import pytest

from expo_ray.loadtests.dispatch import Clock, Ramp, closed_loop, open_loop
from expo_ray.loadtests.metrics import summarize_point
from expo_ray.loadtests.options import LoadtestOptions
from expo_ray.loadtests.records import Job, RequestRecord
from tests.loadtests.virtual_time import VirtualLoop, run

OPTIONS = LoadtestOptions(e2el_slo_ms=100.0)
TAKES = 0.01


def jobs(num: int) -> list[Job]:
    return [Job(request_id=i, prompt_id=f"p{i}", messages=()) for i in range(num)]


@dataclass
class Service:
    """Answers a request in 10 ms, two tokens in one chunk; between two moments it stands still."""

    stall_from: float = 1e9
    stall_to: float = 1e9

    async def send(self, job: Job, due: float, clock: Clock) -> RequestRecord:
        sent = clock()
        if self.stall_from <= sent < self.stall_to:
            await asyncio.sleep(self.stall_to - sent)
        await asyncio.sleep(TAKES)
        return RequestRecord(
            request_id=job.request_id,
            prompt_id=job.prompt_id,
            phase=job.phase,
            intended_seconds=due,
            sent_seconds=sent,
            token_seconds=(clock(),),
            done_seconds=clock(),
            input_tokens=1,
            output_tokens=2,
        )


def offer_open(service: Service, num: int, *, every: float) -> list[RequestRecord]:
    loop = VirtualLoop()
    due = [i * every for i in range(num)]
    return run(open_loop(service.send, jobs(num), due_seconds=due, clock=loop.time), loop)


def test_a_stall_under_open_loop_is_seen_by_everyone_who_would_have_asked() -> None:
    # Ten requests a second for three seconds; the service stands still from 1 to 2.
    records = offer_open(Service(stall_from=1.0, stall_to=2.0), 30, every=0.1)
    waits = [TAKES + (2.0 - i * 0.1 if 10 <= i < 20 else 0.0) for i in range(30)]
    assert [r.e2el_seconds for r in records] == pytest.approx(waits)
    point = summarize_point(records, options=OPTIONS, offered_rate=10.0)
    assert point["mean_e2el_ms"] == pytest.approx(sum(waits) / 30 * 1e3)
    assert point["p90_e2el_ms"] == pytest.approx(720)
    assert point["goodput_share"] == pytest.approx(20 / 30)
    assert point["client_saturated"] is False
    # The gap begins with the first request that nobody answers, not with the idle time before.
    assert point["longest_gap_at_seconds"] == pytest.approx(1.0)
    assert point["longest_gap_ms"] == pytest.approx(1010)


def test_a_closed_loop_hides_the_same_stall() -> None:
    loop = VirtualLoop()
    service = Service(stall_from=1.0, stall_to=2.0)
    records = run(closed_loop(service.send, jobs(150), concurrency=1, clock=loop.time), loop)
    point = summarize_point(records, options=OPTIONS, concurrency=1)
    assert sum(r.e2el_seconds > 0.1 for r in records if r.e2el_seconds) == 1
    assert point["p99_e2el_ms"] == pytest.approx(10)
    assert point["longest_gap_ms"] == pytest.approx(1010)  # and yet the gap is told


def test_a_stalled_client_makes_the_point_void_and_hides_nothing() -> None:
    loop = VirtualLoop()
    service = Service()

    async def send(job: Job, due: float, clock: Clock) -> RequestRecord:
        if job.request_id == 10:
            loop.now += 0.5  # the process did not run
        return await service.send(job, due, clock)

    due = [i * 0.1 for i in range(30)]
    records = run(open_loop(send, jobs(30), due_seconds=due, clock=loop.time), loop)
    late = [r.sent_seconds - r.intended_seconds for r in records]
    assert late == pytest.approx([0.0] * 10 + [0.5, 0.4, 0.3, 0.2, 0.1] + [0.0] * 15)
    point = summarize_point(records, options=OPTIONS, offered_rate=10.0)
    assert point["client_saturated"] is True
    assert "requests left" in point["void_reasons"][0]
    # Both latencies are told: from when it was due, and from when it left.
    assert point["p95_e2el_ms"] == pytest.approx(365)
    assert point["p99_e2el_from_send_ms"] == pytest.approx(10)


def test_a_closed_loop_ramps_up() -> None:
    loop = VirtualLoop()
    ramp = [
        Ramp(
            job=Job(request_id=-i, prompt_id="r", messages=(), phase="ramp"),
            begin_seconds=i * 0.1,
            end_seconds=0.2,
        )
        for i in range(2)
    ]
    send = Service().send
    records = run(closed_loop(send, jobs(10), concurrency=2, clock=loop.time, ramp=ramp), loop)
    warming = [r for r in records if r.phase == "ramp"]
    assert len(warming) == pytest.approx(30, abs=1)  # 20 of the first, 10 of the second
    assert sorted(r.intended_seconds for r in warming)[:11] == pytest.approx(
        [i * 0.01 for i in range(11)]
    )
    measured = [r for r in records if r.phase == "measured"]
    assert len(measured) == 10
    assert min(r.intended_seconds for r in measured) == pytest.approx(0.2, abs=0.0101)
    point = summarize_point(records, options=LoadtestOptions(ramp_seconds=0.2), concurrency=2)
    assert point["num_requests"] == 10
    assert point["steady"]["request_throughput"] == pytest.approx(200, rel=0.3)
