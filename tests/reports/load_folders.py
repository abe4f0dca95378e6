"""Folders of load tests: a made-up service, measured and judged by the real code."""

from __future__ import annotations

import heapq
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from expo_ray.loadtests import LoadtestOptions
from expo_ray.loadtests.loads import Load
from expo_ray.loadtests.metrics import summarize_point
from expo_ray.loadtests.paired import compare_requests
from expo_ray.loadtests.records import REQUESTS_SCHEMA, RequestRecord
from expo_ray.loadtests.scaling import scaling_points
from expo_ray.loadtests.schedule import arrival_seconds
from expo_ray.loadtests.search import find_highest_rate, find_saturation

OPTIONS = LoadtestOptions(e2el_slo_ms=1500.0, max_points=9)


class Service:
    """Replicas of eight slots each; a token takes 20 ms in an empty one.

    Args:
        num_replicas: How many.
        longer: Tokens per answer, over 24 on average.
        killed_at: Second at which the first replica dies; another starts 4 s later.
        client_lag: How late the client sends, in seconds.
        first_token_seconds: Time to the first token in an empty service.
    """

    def __init__(
        self,
        num_replicas: int = 1,
        *,
        longer: float = 1.0,
        killed_at: float | None = None,
        client_lag: float = 0.0,
        first_token_seconds: float = 0.03,
        name: str = "replica",
    ) -> None:
        self.num_replicas, self.longer, self.killed_at = num_replicas, longer, killed_at
        self.client_lag, self.name = client_lag, name
        self.first_token_seconds = first_token_seconds
        self.rows: list[dict[str, Any]] = []
        self.points: list[dict[str, Any]] = []

    def offer(self, load: Load, num_requests: int = 160) -> dict[str, Any]:
        records = self._serve(load, num_requests)
        self.rows += [r.as_row(point=len(self.points)) for r in records]
        point = summarize_point(
            records,
            options=OPTIONS,
            concurrency=load.concurrency,
            offered_rate=load.offered_rate,
            loop_lag_seconds=[0.001] * 20,
        )
        self.points.append({**point, "trace": False, "started_at": 0.0})
        return self.points[-1]

    def _serve(self, load: Load, num_requests: int) -> list[RequestRecord]:
        random = np.random.default_rng([num_requests, int(100 * self.longer)])
        slots = [
            (0.0, f"{self.name}-{i % self.num_replicas}") for i in range(8 * self.num_replicas)
        ]
        due_seconds = (
            arrival_seconds(num_requests, rate=load.rate, arrivals="poisson", seed=1)
            if load.rate
            else None
        )
        free = [0.0] * (load.concurrency or 0)
        records = []
        for number in range(num_requests):
            due = due_seconds[number] if due_seconds else heapq.heappop(free)
            begin, replica = heapq.heappop(slots)
            start = max(begin, due)
            tokens = max(2, int(self.longer * random.poisson(24)))
            first = self.first_token_seconds * random.uniform(0.8, 1.3)
            times = start + first + 0.02 * np.arange(tokens) * random.uniform(0.9, 1.1)
            error = None
            dead = self.killed_at is not None and replica.endswith("-0")
            if dead and times[-1] > (self.killed_at or 0):
                times = times[times < (self.killed_at or 0)]
                error, replica_next = "mid_stream", f"{self.name}-new"
                done = self.killed_at or 0
                heapq.heappush(slots, (done + 4.0, replica_next))
            else:
                done = float(times[-1])
                heapq.heappush(slots, (done, replica))
            done = max(done, due)
            if due_seconds is None:
                heapq.heappush(free, done)
            records.append(
                RequestRecord(
                    request_id=number,
                    prompt_id=str(number),
                    intended_seconds=due,
                    sent_seconds=min(due + self.client_lag, done),
                    token_seconds=tuple(float(t) for t in times),
                    done_seconds=done,
                    input_tokens=12,
                    output_tokens=None if error else tokens,
                    replica=replica,
                    finish_reason=None if error else "length",
                    error=error,
                )
            )
        return records

    def write(self, folder: Path, *, model: str, search: dict[str, Any] | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        summary = {
            "schema_version": 1,
            "target": model,
            "model": model,
            "alpha": None,
            "weights_digest": "0" * 64,
            "void": any(p["client_saturated"] for p in self.points),
            "prefix_cache": "reused",
            "num_requests": 160,
            "max_tokens": 64,
            "options": OPTIONS.model_dump(),
            "clients": {"num_clients": 2, "node_ids": ["a"], "beside_replicas": True},
            "versions": {"expo-ray": "0", "ray": "2"},
            "search": search,
            "points": self.points,
        }
        (folder / "summary.json").write_text(json.dumps(summary))
        table = pa.Table.from_pylist(self.rows, schema=REQUESTS_SCHEMA)
        pq.write_table(table, folder / "requests.parquet")


def write_sweep(folder: Path, *, model: str = "expo", concurrency: Sequence[int] = (1,)) -> None:
    service = Service()
    loads = [Load(concurrency=n) for n in concurrency]
    service.write(folder, model=model, search=find_saturation(service.offer, loads, OPTIONS))


def write_slo_search(folder: Path) -> None:
    service = Service()
    service.write(folder, model="expo", search=find_highest_rate(service.offer, 4.0, OPTIONS))


def write_killed(folder: Path) -> None:
    service = Service(2, killed_at=3.0)
    service.offer(Load(concurrency=12), 300)
    service.write(folder, model="expo")


def write_void(folder: Path) -> None:
    service = Service()
    for concurrency, lag in ((2, 0.0), (4, 0.2), (8, 0.0)):
        service.client_lag = lag
        service.offer(Load(concurrency=concurrency))
    service.write(folder, model="expo")


def write_scaling(folder: Path, *, replicas: Sequence[int] = (1, 2, 4)) -> None:
    found = []
    for number in replicas:
        ways: list[dict[str, Any]] = []
        for way in ("proxy", "direct"):
            first = 0.033 if way == "proxy" else 0.03
            service = Service(number, name=way, first_token_seconds=first)
            ways.append(service.offer(Load(concurrency=8 * number), 160 * number))
            service.write(folder / f"replicas-{number}-{way}" / "round-0", model="expo")
        found.append((number, [(ways[0], ways[1])]))
    scaling = {"target": "expo", "alpha": None, "rounds": 1, "points": scaling_points(found)}
    (folder / "scaling.json").write_text(json.dumps({"schema_version": 1, **scaling}))


def write_comparison(folder: Path, *, rounds: int = 3) -> None:
    loads = [Load(concurrency=4), Load(concurrency=8), Load(rate=5.0)]
    sides: dict[str, list[Service]] = {"baseline": [], "candidate": []}
    for side, longer in (("baseline", 1.0), ("candidate", 1.3)):
        for number in range(rounds):
            service = Service(longer=longer)
            for load in loads:
                service.offer(load, 160 + number)
            service.write(folder / side / f"round-{number}", model="dpo")
            sides[side].append(service)

    def rows(side: str, index: int) -> list[dict[str, Any]]:
        return [
            {**row, "round": number}
            for number, service in enumerate(sides[side])
            for row in service.rows
            if row["point"] == index
        ]

    points = [
        {
            "concurrency": load.concurrency,
            "offered_rate": load.offered_rate,
            **compare_requests(
                rows("baseline", i), rows("candidate", i), is_closed=load.rate is None
            ),
        }
        for i, load in enumerate(loads)
    ]
    names = {
        side: {"target": "dpo", "model": "dpo", "alpha": alpha, "weights_digest": "0" * 64}
        for side, alpha in (("baseline", 0.0), ("candidate", 0.3))
    }
    compared = {"schema_version": 1, **names, "rounds": rounds, "void": False, "points": points}
    (folder / "comparison.json").write_text(json.dumps(compared))
