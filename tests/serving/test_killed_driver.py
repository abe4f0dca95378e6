"""Drivers killed while their applications start, on a cluster that stays."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from expo_ray.serving.keeper import live_jobs
from expo_ray.serving.placement_watch import explain
from tests.head_node import RAY, free_port

COMMAND = Path(sys.executable).with_name("expo-ray")


@pytest.fixture
def small_cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """A head node with room for one replica, which stays when drivers go."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # a throw-away cluster on the loopback address
    port = free_port()
    command = [str(RAY), "start", "--head", "--block", "--node-ip-address=127.0.0.1"]
    command += [f"--port={port}", "--num-cpus=1", "--include-dashboard=false"]
    command += ["--disable-usage-stats", f"--ray-client-server-port={free_port()}"]
    with (tmp_path / "head.log").open("w") as log:
        head = subprocess.Popen(command, start_new_session=True, stdout=log, stderr=log)
        try:
            yield f"127.0.0.1:{port}"
        finally:
            head.terminate()  # a blocked start ends its processes with it
            head.wait(timeout=60)


def start(address: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [str(COMMAND), *map(str, arguments), "--address", address, "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "RAY_SERVE_LOG_TO_STDERR": "0"},
    )


def serve_actors() -> set[str]:
    names = ray.util.list_named_actors(all_namespaces=True)
    return {actor["name"].split("#")[0] for actor in names}


def wait_until(is_so: object, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():  # type: ignore[operator]
        assert time.monotonic() < deadline, serve_actors()
        time.sleep(0.2)


@pytest.mark.slow
def test_what_a_killed_driver_had_started_makes_room_and_goes(
    small_cluster: str, pico_pair: tuple[Path, Path], tmp_path: Path
) -> None:
    prompts = tmp_path / "p.jsonl"
    prompts.write_text(json.dumps({"prompt": "Count to 3."}))
    asked = ("generate", pico_pair[1], "--prompts", prompts, "--output", tmp_path / "r.parquet")
    asked += ("--max-tokens", "4")
    ray.init(address=small_cluster, log_to_driver=False)
    try:
        first = start(small_cluster, *asked)
        # The application is deployed, and its replica has the only CPU.
        wait_until(lambda: any("SERVE_REPLICA" in name for name in serve_actors()), 120)
        first.send_signal(signal.SIGKILL)
        first.wait()
        again = start(small_cluster, *asked)
        out, err = again.communicate(timeout=170)
        assert again.returncode == 0, err
        assert json.loads(out)["num_generated"] == 1
        wait_until(lambda: not serve_actors(), 60)
        assert len(live_jobs()) == 1  # ours
    finally:
        ray.shutdown()


@pytest.mark.slow
def test_who_waits_for_room_is_told_who_has_it(
    small_cluster: str, pico_pair: tuple[Path, Path], tmp_path: Path
) -> None:
    ray.init(address=small_cluster, log_to_driver=False, namespace="somebody")
    try:

        @ray.remote(num_cpus=1)
        class Hog:
            def ready(self) -> None: ...

        hog = Hog.options(name="hog").remote()
        ray.get(hog.ready.remote())
        prompts = tmp_path / "p.jsonl"
        prompts.write_text(json.dumps({"prompt": "Count to 3."}))
        asked = ("generate", pico_pair[1], "--prompts", prompts, "--output", tmp_path / "r.parquet")
        waiting = start(small_cluster, *asked, "--max-tokens", "4")
        assert waiting.stderr is not None
        seen = ""
        for line in waiting.stderr:
            seen += line
            if "actor hog of job" in line:
                break
        assert "0 of 1 CPU free" in seen
        assert "1 CPU" in seen
        ray.kill(hog)
        out, err = waiting.communicate(timeout=120)
        assert waiting.returncode == 0, err
        assert json.loads(out)["num_generated"] == 1
    finally:
        ray.shutdown()


def test_holders_are_named_the_largest_first_and_not_without_end() -> None:
    held = {"Serve application a": {"CPU": 4.0, "GPU": 1.0}}
    held |= {f"actor {n} of job 01": {"CPU": 1.0} for n in range(9)}
    text = explain(2, held, "0 of 13 CPU free")
    assert text.startswith("2 replica(s) wait for room on the cluster (0 of 13 CPU free)")
    assert "Serve application a: 4 CPU, 1 GPU; actor 0" in text
    assert "actor 7" not in text
    assert "and 2 more" in text
