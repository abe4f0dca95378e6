"""Is a request lost when a replica dies? Clients ask a service all the time; its replica is killed.

    python -m benchmarks.replica_deaths --deaths 8
    python -m benchmarks.replica_deaths --deaths 8 --kept
    RAY_SERVE_ENABLE_HA_PROXY=0 python -m benchmarks.replica_deaths --deaths 8

The one replica of a tiny random model is killed again and again (SIGKILL) while clients ask it,
each request on a connection of its own or all of a client on one that is kept; Serve starts the
next. Pass: every request has an answer, be it the error 500 or 503; a connection that is closed
without one is a request lost, which no client can tell from one that was done. Other answers are
faults of the benchmark.

Needs: two CPU cores. Takes: half a minute per death.
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from urllib.parse import urlsplit

from expo_ray.cluster import ray_session
from expo_ray.serving import ModelSource, ServedModel
from tests.pico import save_pair
from tests.serving.test_robustness import replica_process

NUM_CLIENTS = 4
MAX_TOKENS = 64
"""So long that some requests are inside when the replica dies."""
LONGEST_PAUSE_SECONDS = 0.01
START_SECONDS = 300
"""Also the longest that a client waits: without a replica requests wait for the next."""
ANSWERS = ("200", "500", "503")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--deaths", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=10.0, help="of answers before each death")
    parser.add_argument("--kept", action="store_true", help="each client keeps its connection")
    flags = parser.parse_args(arguments)
    found: Counter[str] = Counter()
    seconds: list[float] = []
    over = Event()
    with tempfile.TemporaryDirectory() as folder, ray_session("local"):
        _, model = save_pair(Path(folder))
        with (
            ServedModel(ModelSource(model=str(model))) as served,
            ThreadPoolExecutor(NUM_CLIENTS) as pool,
        ):
            for _ in range(NUM_CLIENTS):
                pool.submit(ask, served, over, found, seconds, kept=flags.kept)
            try:
                for number in range(flags.deaths):
                    wait_for_answers(found, flags.seconds)
                    before = found.copy()
                    replica_process(served).kill()
                    time.sleep(1)
                    print(f"death {number + 1}, a second later: {told(found - before)}", flush=True)
                wait_for_answers(found, flags.seconds)
            finally:
                over.set()
    num_lost = sum(count for answer, count in found.items() if answer not in ANSWERS)
    print(f"{flags.deaths} deaths, {found.total()} requests: {told(found)}")
    print(f"the longest took {max(seconds):.1f} s")
    print(f"{'PASS' if num_lost == 0 else 'MISS'}: {num_lost} without an answer")
    return 0 if num_lost == 0 else 1


def wait_for_answers(found: Counter[str], seconds: float) -> None:
    """Wait until there is a replica again, and then for so long as it shall answer."""
    deadline = time.monotonic() + START_SECONDS
    before = found["200"]
    while found["200"] < before + NUM_CLIENTS:
        if time.monotonic() > deadline:
            raise SystemExit("no replica came back")
        time.sleep(0.1)
    time.sleep(seconds)


def ask(
    served: ServedModel, over: Event, found: Counter[str], seconds: list[float], *, kept: bool
) -> None:
    """Ask until it is over; counts how often which status came, or which error instead of one."""
    url = urlsplit(served.url)
    asked = {"model": served.model, "prompt": "x", "max_tokens": MAX_TOKENS, "seed": 1}
    body, headers = json.dumps(asked), {"Content-Type": "application/json"}
    connection = None
    while not over.is_set():
        if connection is None:
            connection = http.client.HTTPConnection(
                url.hostname or "", url.port, timeout=START_SECONDS
            )
        started = time.monotonic()
        try:
            connection.request("POST", f"{url.path}/v1/completions", body=body, headers=headers)
            answer = connection.getresponse()
            answer.read()
            found[str(answer.status)] += 1
            is_kept = kept and not answer.will_close
        except (OSError, http.client.HTTPException) as error:
            found[type(error).__name__] += 1
            is_kept = False
        seconds.append(time.monotonic() - started)
        if not is_kept:
            connection.close()
            connection = None
        time.sleep(random.random() * LONGEST_PAUSE_SECONDS)


def told(answers: Counter[str]) -> str:
    """Return counts as text, most frequent first."""
    return ", ".join(f"{count} x {answer}" for answer, count in answers.most_common())


if __name__ == "__main__":
    sys.exit(main())
