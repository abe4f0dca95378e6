"""A replica dies under load: what the requests see, what the summary says, how service goes on."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest

from expo_ray.loadtests import LoadtestOptions, loadtest
from expo_ray.progress import NullProgress, ProgressBar
from expo_ray.reports import write_report
from expo_ray.serving import ModelSource, ServedModel
from tests.reports.page import Page

IN_FLIGHT = 8
SECONDS = 6


class AtShare(NullProgress):
    """Progress that acts once when a quarter of the requests is done."""

    def __init__(self, act: Callable[[], None]) -> None:
        self._act: Callable[[], None] | None = act

    def start(self, description: str, total: float | None = None, unit: str = "") -> ProgressBar:
        self._due = (total or 0) // 4
        return self

    def advance(self, amount: float = 1) -> None:
        self._due -= amount
        if self._due <= 0 and self._act is not None:
            self._act()
            self._act = None

    def set_total(self, total: float) -> None:
        pass

    def close(self) -> None:
        pass


def replicas(served: ServedModel) -> dict[str, int]:
    """Process ids of the running replicas, by name."""
    from ray.serve.context import _get_global_client

    details = _get_global_client().get_serve_details()["applications"][served.app_name]
    return {
        replica["replica_id"]: replica["pid"]
        for deployment in details["deployments"].values()
        for replica in deployment["replicas"]
        if replica["state"] == "RUNNING" and replica["pid"]
    }


@pytest.mark.slow
def test_a_replica_killed_under_load_is_told_and_replaced(
    pico_pair: tuple[Path, Path], tmp_path: Path, ray_cluster: str
) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"Say {i}."}) + "\n" for i in range(20)))

    def run(name: str, num_requests: int, **more: Any) -> dict[str, Any]:
        options = LoadtestOptions(
            num_clients=1, extra_body={"ignore_eos": True}, max_error_rate=0.9
        )
        [point] = loadtest(
            served.url,
            prompts=prompts,
            output=tmp_path / name,
            concurrency=[IN_FLIGHT],
            num_requests=num_requests,
            max_tokens=48,
            options=options,
            address=ray_cluster,
            **more,
        )["points"]
        return point

    source = ModelSource(model=str(pico_pair[1]))
    with ServedModel(source, num_replicas=2, engine="transformers") as served:
        before = run("before", 24)
        assert len(before["replicas"]) == 2
        killed, pid = sorted(replicas(served).items())[0]
        num_requests = max(60, int(SECONDS * before["request_throughput"]))
        during = run("during", num_requests, progress=AtShare(psutil.Process(pid).kill))

        # Every request has an end; those that were in flight on the dead replica are failures.
        assert during["completed"] + during["failed"] == num_requests
        assert 1 <= during["failed"] - during["errors"].get("empty", 0) <= IN_FLIGHT
        told = {one["kind"]: one for one in during["interruptions"]}
        assert f"replica {killed} answered no more" in told["replica_lost"]["text"]
        assert " failed " in told["failures"]["text"]
        rows = pq.read_table(tmp_path / "during" / "requests.parquet").to_pylist()
        died = told["replica_lost"]["start_seconds"]
        after = [r for r in rows if r["intended_seconds"] > died and r["error"] is None]
        assert after and killed not in {r["replica"] for r in after}
        assert "answered no more" in Page(write_report(tmp_path / "during")).text

        deadline = time.monotonic() + 90
        while len(replicas(served).keys() - {killed}) < 2 and time.monotonic() < deadline:
            time.sleep(0.2)
        recovered = run("recovered", 32)
        assert len(recovered["replicas"]) == 2 and killed not in recovered["replicas"]
        assert set(recovered["errors"]) <= {"empty"}
        assert recovered["interruptions"] == []
