"""Is a request lost when a replica dies? Clients keep asking a service whose replica is killed.

    python -m benchmarks.replica_deaths --deaths 12
    python -m benchmarks.replica_deaths --deaths 8 --kept
    RAY_SERVE_ENABLE_HA_PROXY=0 python -m benchmarks.replica_deaths --deaths 8

One replica of a tiny random model is killed again and again (SIGKILL), and Serve starts another.
Four clients ask meanwhile, each request on a connection of its own, or all of a client on one that
is kept. Pass: every request has an answer, be it the error 500; a connection that is closed without
one is a request lost, which no client can tell from one that was done.

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
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

from expo_ray.cluster import ray_session
from expo_ray.serving import ModelSource, ServedModel
from tests.pico import save_pair
from tests.serving.test_robustness import replica_process

NUM_CLIENTS = 4
LONGEST_PAUSE_SECONDS = 0.01
START_SECONDS = 60


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--deaths", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=22.0, help="of asking after each death")
    parser.add_argument("--kept", action="store_true", help="each client keeps its connection")
    flags = parser.parse_args(arguments)
    found: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder, ray_session("local"):
        _, model = save_pair(Path(folder))
        with ServedModel(ModelSource(model=str(model))) as served:
            for number in range(flags.deaths):
                kill(served)
                with ThreadPoolExecutor(NUM_CLIENTS) as pool:
                    until = time.monotonic() + flags.seconds
                    asking = [
                        pool.submit(ask, served, until, kept=flags.kept) for _ in range(NUM_CLIENTS)
                    ]
                    answers = sum((each.result() for each in asking), Counter())
                print(f"death {number + 1}: {told(answers)}", flush=True)
                found += answers
    num_lost = sum(count for answer, count in found.items() if not answer.isdigit())
    print(f"{flags.deaths} deaths, {found.total()} requests: {told(found)}")
    print(f"{'PASS' if num_lost == 0 else 'MISS'}: {num_lost} without an answer")
    return 0 if num_lost == 0 else 1


def kill(served: ServedModel) -> None:
    """Kill the replica, once there is one."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        with suppress(ValueError):  # none, or the old one beside the new one
            replica_process(served).kill()
            return
        time.sleep(0.2)
    raise SystemExit("no replica came back")


def ask(served: ServedModel, until: float, *, kept: bool) -> Counter[str]:
    """Ask until a moment; returns how often which status came, or which error instead of one."""
    url = urlsplit(served.url)
    body = json.dumps({"model": served.model, "prompt": "x", "max_tokens": 8, "seed": 1})
    headers = {"Content-Type": "application/json"}
    found: Counter[str] = Counter()
    connection = None
    while time.monotonic() < until:
        if connection is None:
            connection = http.client.HTTPConnection(url.hostname or "", url.port, timeout=60)
        try:
            connection.request("POST", f"{url.path}/v1/completions", body=body, headers=headers)
            answer = connection.getresponse()
            answer.read()
            found[str(answer.status)] += 1
            is_kept = kept and not answer.will_close
        except (OSError, http.client.HTTPException) as error:
            found[type(error).__name__] += 1
            is_kept = False
        if not is_kept:
            connection.close()
            connection = None
        time.sleep(random.random() * LONGEST_PAUSE_SECONDS)
    return found


def told(answers: Counter[str]) -> str:
    """Return counts as text, most frequent first."""
    return ", ".join(f"{count} x {answer}" for answer, count in answers.most_common())


if __name__ == "__main__":
    sys.exit(main())
