"""The driver of the clients: deals out requests, follows them, gathers the records."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import ray
from ray.exceptions import ActorUnschedulableError, RayActorError

from expo_ray.cluster import get_within
from expo_ray.errors import EvaluationError
from expo_ray.loadtests.client import LoadClient, Sent
from expo_ray.loadtests.dispatch import Ramp
from expo_ray.loadtests.loads import Load
from expo_ray.loadtests.metrics import summarize_point
from expo_ray.loadtests.options import LoadtestOptions
from expo_ray.loadtests.placement import place_clients
from expo_ray.loadtests.prompting import PromptSource
from expo_ray.loadtests.records import Job, RequestRecord
from expo_ray.loadtests.schedule import arrival_seconds
from expo_ray.loadtests.stream import Endpoint
from expo_ray.progress import Progress, ProgressBar
from expo_ray.remote_errors import cause_in_one_line

_START_DELAY_SECONDS = 0.2
"""Time for the calls to reach the clients before second 0."""
_POLL_SECONDS = 0.5
_START_SECONDS = 300.0
_ANSWER_SECONDS = 120.0
_CLOCK_PINGS = 5
_SEARCH_ROUNDS = 4
"""A load of a search lasts so many times as long as one answer."""
_MAX_SEARCH_STRETCH = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class Offered:
    """What came back from one load."""

    started_at: float
    """Unix time of second 0."""
    records: list[RequestRecord]
    loop_lag_seconds: list[float]


class Runner:
    """Holds the clients and offers one load after the other.

    Args:
        endpoint: The service.
        prompts: Where requests come from.
        num_requests: Measured requests per point.
        max_tokens: Longest answer.
        options: Everything else.
        progress: Where to report.
        direct: Reach the replicas through their handle, without proxy and HTTP.
        searching: The loads are named by no plan: each must last until its steady state shows.

    Raises:
        ConfigError: The clients may run nowhere.
        EvaluationError: A client did not start.
    """

    def __init__(
        self,
        *,
        endpoint: Endpoint,
        prompts: PromptSource,
        num_requests: int,
        max_tokens: int,
        options: LoadtestOptions,
        progress: Progress,
        direct: bool = False,
        searching: bool = False,
    ) -> None:
        self._prompts = prompts
        self._searching = searching
        self._last_e2el_seconds = 0.0
        self._num_requests = num_requests
        self._options = options
        self._progress = progress
        self.placement = place_clients(
            options.num_clients,
            url=None if direct else endpoint.url,
            labels=options.client_labels,
        )
        body = {**options.extra_body, "max_tokens": max_tokens}
        actor: Any = ray.remote(LoadClient)
        self._clients = [
            actor.options(**self.placement.options(index)).remote(
                endpoint, body, options.request_timeout_seconds, direct
            )
            for index in range(self.placement.num_clients)
        ]
        try:
            # Returns when the processes have started.
            asked = [client.node_id.remote() for client in self._clients]
            nodes = get_within(_START_SECONDS, asked, what="the start of the load clients")
        except (RayActorError, ActorUnschedulableError) as error:
            raise EvaluationError(
                "a load client did not start",
                where="clients",
                got=cause_in_one_line(error),
                hint="a node left the cluster meanwhile: run the load test again",
            ) from error
        self.client_nodes = sorted(set(nodes))
        self._clock_offsets = [_clock_offset(client) for client in self._clients]

    def run(self, index: int, load: Load) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Warm up, offer one load and return its point and its raw rows."""
        flight = load.concurrency or 2
        num_warmup = self._options.num_warmup
        if num_warmup is None:
            num_warmup = min(16, max(2, flight))
        warmup_jobs = self._prompts.take(num_warmup, "warmup")
        jobs, due = self._plan(load)
        bar = self._progress.start(
            f"Load test, {load}", total=num_warmup + len(jobs), unit="requests"
        )
        warmup = self._closed(warmup_jobs, min(flight, max(1, num_warmup)), [], bar)
        if due is None:
            ramp = self._ramp(load.concurrency or 1)
            offered = self._closed(jobs, load.concurrency or 1, ramp, bar)
        else:
            offered = self._open(jobs, due, bar)
        bar.close()
        point = summarize_point(
            offered.records,
            options=self._options,
            concurrency=load.concurrency,
            offered_rate=load.offered_rate,
            loop_lag_seconds=offered.loop_lag_seconds,
        )
        self._last_e2el_seconds = (point["median_e2el_ms"] or 0.0) / 1e3
        point = {**point, "trace": bool(load.trace), "started_at": offered.started_at}
        rows = [r.as_row(point=index) for r in (*warmup.records, *offered.records)]
        return point, rows

    def _plan(self, load: Load) -> tuple[list[Job], list[float] | None]:
        """Return the requests of a point and, for an open loop, when they are due."""
        options = self._options
        if load.trace:
            return self._prompts.replay(load), [request.due_seconds for request in load.trace]
        num_measured = max(self._num_requests, self._num_until_steady(load))
        num = num_measured + options.num_cooldown
        due: list[float] | None = None
        ramp: list[Job] = []
        if load.rate is not None:
            due = arrival_seconds(
                num,
                rate=load.rate,
                arrivals=options.arrivals,
                seed=options.seed,
                burstiness=options.burstiness,
                ramp_seconds=options.ramp_seconds,
            )
            ramp = self._prompts.take(len(due) - num, "ramp")
        measured = self._prompts.take(num_measured, "measured")
        return [*ramp, *measured, *self._prompts.take(options.num_cooldown, "cooldown")], due

    def _num_until_steady(self, load: Load) -> int:
        if not self._searching:
            return 0
        if load.rate is None:
            return _SEARCH_ROUNDS * (load.concurrency or 0)
        shortest = self._options.search_seconds
        wanted = min(_SEARCH_ROUNDS * self._last_e2el_seconds, _MAX_SEARCH_STRETCH * shortest)
        return math.ceil(load.rate * max(shortest, wanted))

    def _ramp(self, concurrency: int) -> list[Ramp]:
        seconds = self._options.ramp_seconds
        if not seconds:
            return []
        jobs = self._prompts.take(concurrency, "ramp")
        return [
            Ramp(job=job, begin_seconds=seconds * i / concurrency, end_seconds=seconds)
            for i, job in enumerate(jobs)
        ]

    def _closed(
        self, jobs: Sequence[Job], concurrency: int, ramp: Sequence[Ramp], bar: ProgressBar
    ) -> Offered:
        num = min(len(self._clients), concurrency, len(jobs))
        return self._offer(
            "run_closed",
            [
                {
                    "jobs": jobs[i::num],
                    "concurrency": len(range(i, concurrency, num)),
                    "ramp": ramp[i::num],
                }
                for i in range(num)
            ],
            bar,
        )

    def _open(self, jobs: Sequence[Job], due: Sequence[float], bar: ProgressBar) -> Offered:
        num = min(len(self._clients), len(jobs))
        parts = [{"jobs": jobs[i::num], "due_seconds": due[i::num]} for i in range(num)]
        return self._offer("run_open", parts, bar)

    def _offer(
        self,
        method: Literal["run_closed", "run_open"],
        parts: Sequence[dict[str, Any]],
        bar: ProgressBar,
    ) -> Offered:
        start_at = time.time() + _START_DELAY_SECONDS
        calls = [
            getattr(client, method).remote(**part, start_at=start_at + offset)
            for client, offset, part in zip(self._clients, self._clock_offsets, parts, strict=False)
        ]
        try:
            self._follow(calls, bar)
            what = "what the load clients recorded"
            answers: list[Sent] = get_within(_ANSWER_SECONDS, calls, what=what)
        except RayActorError as error:
            raise EvaluationError(
                "a load client died",
                where=method,
                got=cause_in_one_line(error),
                hint="run the load test again",
            ) from error
        return Offered(
            started_at=start_at,
            records=sorted((r for a in answers for r in a.records), key=lambda r: r.request_id),
            loop_lag_seconds=[seconds for a in answers for seconds in a.loop_lag_seconds],
        )

    def _follow(self, calls: list[Any], bar: ProgressBar) -> None:
        """Report progress until all clients are through."""
        shown = self._num_done()
        waiting = calls
        while waiting:
            _, waiting = ray.wait(waiting, num_returns=len(waiting), timeout=_POLL_SECONDS)
            done = self._num_done()
            bar.advance(done - shown)
            shown = done

    def _num_done(self) -> int:
        asked = [client.num_done.remote() for client in self._clients]
        return sum(get_within(_ANSWER_SECONDS, asked, what="how far the load clients are"))


def _clock_offset(client: Any) -> float:
    """Return by how much a client's clock is ahead: that of the swiftest of a few questions."""
    best = (float("inf"), 0.0)
    for _ in range(_CLOCK_PINGS):
        before = time.time()
        theirs = get_within(_ANSWER_SECONDS, client.unix_time.remote(), what="a client's clock")
        after = time.time()
        best = min(best, (after - before, theirs - (before + after) / 2))
    # Less than half the way there and back cannot be told from no difference.
    return best[1] if abs(best[1]) > best[0] / 2 else 0.0
