"""The driver of the clients: deals out requests, follows them, gathers the records."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import ray
from ray.exceptions import RayActorError

from expo_ray.errors import EvaluationError
from expo_ray.loadtest.client import LoadClient, split_jobs
from expo_ray.loadtest.metrics import summarize_point
from expo_ray.loadtest.options import LoadtestOptions
from expo_ray.loadtest.records import Job, RequestRecord
from expo_ray.loadtest.schedule import arrival_seconds
from expo_ray.loadtest.stream import Endpoint
from expo_ray.progress import Progress, ProgressBar
from expo_ray.tables import Prompt

_START_DELAY_SECONDS = 0.2
"""Time for the calls to reach the clients before second 0."""
_POLL_SECONDS = 0.5


@dataclass(frozen=True, kw_only=True, slots=True)
class Load:
    """One point: exactly one of the two is given."""

    concurrency: int | None = None
    rate: float | None = None

    def __str__(self) -> str:
        return f"{self.rate:g} requests/s" if self.rate else f"{self.concurrency} in flight"


class Runner:
    """Holds the clients and offers one load after the other.

    Args:
        endpoint: The service.
        prompts: Used in turn across all points, so that each is sent once while they last.
        num_requests: Measured requests per point.
        max_tokens: Longest answer.
        options: Everything else.
        progress: Where to report.
    """

    def __init__(
        self,
        *,
        endpoint: Endpoint,
        prompts: Sequence[Prompt],
        num_requests: int,
        max_tokens: int,
        options: LoadtestOptions,
        progress: Progress,
    ) -> None:
        self._jobs = _jobs(prompts)
        self._num_requests = num_requests
        self._options = options
        self._progress = progress
        body = {**options.extra_body, "max_tokens": max_tokens}
        # Clients wait for the network nearly all the time: they reserve no CPU, so that they
        # start beside replicas which have taken them all.
        actor = ray.remote(num_cpus=0)(LoadClient)
        self._clients = [
            actor.remote(endpoint, body, options.request_timeout_seconds)
            for _ in range(options.num_clients)
        ]
        self._num_done()  # returns when the processes have started

    def run(self, index: int, load: Load) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Warm up, offer one load and return its point and its raw rows."""
        flight = load.concurrency or 2
        num_warmup = self._options.num_warmup
        if num_warmup is None:
            num_warmup = min(16, max(2, flight))
        bar = self._progress.start(
            f"Load test, {load}", total=num_warmup + self._num_requests, unit="requests"
        )
        warmup, _ = self._offer(num_warmup, Load(concurrency=min(flight, max(1, num_warmup))), bar)
        records, lag = self._offer(self._num_requests, load, bar)
        bar.close()
        point = summarize_point(
            records,
            options=self._options,
            concurrency=load.concurrency,
            offered_rate=load.rate,
            loop_lag_seconds=lag,
        )
        phases = (("warmup", warmup), ("measured", records))
        rows = [r.as_row(point=index, phase=phase) for phase, found in phases for r in found]
        return point, rows

    def _offer(
        self, num_requests: int, load: Load, bar: ProgressBar
    ) -> tuple[list[RequestRecord], list[float]]:
        jobs = list(islice(self._jobs, num_requests))
        if not jobs:
            return [], []
        num_clients = min(len(self._clients), load.concurrency or len(jobs), len(jobs))
        clients = self._clients[:num_clients]
        dealt = list(split_jobs(jobs, num_clients))
        start_at = time.time() + _START_DELAY_SECONDS
        if load.rate is None:
            flights = [
                len(range(i, load.concurrency or 1, num_clients)) for i in range(num_clients)
            ]
            calls = [
                client.run_closed.remote(part, concurrency=flight, start_at=start_at)
                for client, part, flight in zip(clients, dealt, flights, strict=True)
            ]
        else:
            due = arrival_seconds(
                len(jobs),
                rate=load.rate,
                arrivals=self._options.arrivals,
                seed=self._options.seed,
            )
            calls = [
                client.run_open.remote(part, due_seconds=due[i::num_clients], start_at=start_at)
                for i, (client, part) in enumerate(zip(clients, dealt, strict=True))
            ]
        try:
            self._follow(calls, bar)
            answers = ray.get(calls)
        except RayActorError as error:
            raise EvaluationError(
                "a load client died", where=str(load), got=error, hint="run the load test again"
            ) from error
        records = sorted((r for found, _ in answers for r in found), key=lambda r: r.request_id)
        return records, [seconds for _, lag in answers for seconds in lag]

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
        return sum(ray.get([client.num_done.remote() for client in self._clients]))


def _jobs(prompts: Sequence[Prompt]) -> Iterator[Job]:
    """Yield requests without end, through the prompts in order and round again."""
    request_id = 0
    while True:
        for prompt in prompts:
            yield Job(request_id=request_id, prompt_id=prompt.prompt_id, messages=prompt.messages)
            request_id += 1
