"""Does a service grow over hours? Memory and open files of its processes under a steady load.

    python -m benchmarks.soak [--minutes 60] [--rate 2] [--replicas 2] [--model CHECKPOINT]

It serves a tiny random model (or MODEL) and offers requests at a constant rate: streamed answers
and, one time in five, what services suffer from: broken JSON, an unknown model, a prompt beyond the
context, a client that vanishes amid its stream. Printed over time: memory (RSS) and open files of
replicas, proxy, controller and client, failures, throughput; at the end the fitted slope of each.

Pass: only what is wrong is refused, no process has ended, and nothing grows (`Trend.grows`).

Needs: two CPU cores. Takes: an hour.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import psutil
from scipy.stats import theilslopes

from expo_ray.cluster import ray_session
from expo_ray.loadtests.records import Job
from expo_ray.loadtests.stream import Endpoint, HttpSender
from expo_ray.serving import ModelSource, ServedModel
from expo_ray.tables import Message
from tests.pico import save_pair

MAX_TOKENS = 16
SETTLE_SHARE = 1 / 3
"""Share of the time that is not judged: caches fill and allocators warm up."""
ALLOWED_GROWTH = {"memory_bytes": 16 * 2**20, "open_files": 5.0}
"""Growth over the judged time that passes: allocators and connection pools breathe. The first
minutes need more: caches and arenas fill for the first few hundred requests."""
MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class Trend:
    """A straight line through a series, robust against peaks (Theil-Sen)."""

    slope_per_second: float
    low_per_second: float
    """Lower end of the 95% interval of the slope."""
    high_per_second: float
    span_seconds: float
    """Length of the judged time."""

    def grows(self, allowed: float) -> bool:
        """Whether it surely rises, and by more than allowed within the judged time."""
        return self.low_per_second > 0 and self.slope_per_second * self.span_seconds > allowed


def fit_trend(seconds: Sequence[float], values: Sequence[float]) -> Trend:
    """Fit the trend of a series after it has settled; at least four samples must be left."""
    start = seconds[0] + SETTLE_SHARE * (seconds[-1] - seconds[0])
    kept = [(s, v) for s, v in zip(seconds, values, strict=True) if s >= start]
    times, judged = zip(*kept, strict=True)
    slope, _, low, high = theilslopes(judged, times)
    return Trend(
        slope_per_second=float(slope),
        low_per_second=float(low),
        high_per_second=float(high),
        span_seconds=times[-1] - times[0],
    )


@dataclass
class Tally:
    """What came back."""

    answered: int = 0
    refused_as_due: int = 0
    vanished: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    most_in_flight: int = 0


@dataclass(kw_only=True)
class Series:
    """What one process used, sample by sample."""

    process: psutil.Process
    memory_bytes: list[float] = field(default_factory=list)
    open_files: list[float] = field(default_factory=list)
    ended: bool = False

    def sample(self) -> None:
        try:
            self.memory_bytes.append(float(self.process.memory_info().rss))
            self.open_files.append(float(self.process.num_fds()))
        except psutil.NoSuchProcess:
            self.ended = True


def watched_processes(app_name: str) -> dict[str, psutil.Process]:
    """Return the processes of a service on this machine: those of its Ray, and this one."""
    from ray.serve.context import _get_global_client

    details = _get_global_client().get_serve_details()["applications"][app_name]
    replicas = [r for d in details["deployments"].values() for r in d["replicas"]]
    found = {f"replica {i}": psutil.Process(r["pid"]) for i, r in enumerate(replicas)}
    for process in found["replica 0"].parent().children():
        title = " ".join(process.cmdline()[:1])
        for role, actor in (("proxy", "ProxyActor"), ("controller", "ServeController")):
            if actor in title:
                found[role] = process
    return {**found, "client": psutil.Process()}


class Traffic:
    """Requests at a constant rate, good ones and bad ones by turns."""

    def __init__(self, served: ServedModel, tally: Tally) -> None:
        self._served = served
        self._url = f"{served.url}/v1/chat/completions"
        self._tally = tally
        self._clock = time.monotonic

    async def offer(self, *, rate: float, seconds: float) -> None:
        endpoint = Endpoint(url=self._served.url, model=self._served.model)
        body = {"max_tokens": MAX_TOKENS, "ignore_eos": True}
        start, number = self._clock(), 0
        asked: set[asyncio.Task[None]] = set()
        async with (
            HttpSender(endpoint, body, timeout_seconds=120) as sender,
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=120)) as session,
        ):
            while number < rate * seconds:
                await asyncio.sleep(start + number / rate - self._clock())
                kinds = {4: self._malformed, 9: self._unknown, 14: self._too_long, 19: self._vanish}
                odd = kinds.get(number % 20)
                ask = self._good(sender, number) if odd is None else odd(session)
                asked.add(task := asyncio.create_task(ask))
                task.add_done_callback(asked.discard)
                self._tally.most_in_flight = max(self._tally.most_in_flight, len(asked))
                number += 1
            await asyncio.gather(*asked)

    async def _good(self, sender: HttpSender, number: int) -> None:
        message = Message(role="user", content=f"Question {number}: what is new?")
        job = Job(request_id=number, prompt_id=str(number), messages=(message,))
        record = await sender.send(job, self._clock(), self._clock)
        # A random model may say nothing that is text.
        if record.error in (None, "empty"):
            self._tally.answered += 1
        else:
            self._tally.failures[record.error] += 1

    async def _malformed(self, session: aiohttp.ClientSession) -> None:
        await self._refused(session, b"{", 400)

    async def _unknown(self, session: aiohttp.ClientSession) -> None:
        await self._refused(session, self._body(model="none"), 404)

    async def _too_long(self, session: aiohttp.ClientSession) -> None:
        await self._refused(session, self._body(content="long " * 20_000), 400)

    async def _refused(self, session: aiohttp.ClientSession, data: bytes, expected: int) -> None:
        headers = {"Content-Type": "application/json"}
        try:
            async with session.post(self._url, data=data, headers=headers) as answer:
                await answer.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            self._tally.failures[type(error).__name__] += 1
            return
        if answer.status == expected:
            self._tally.refused_as_due += 1
        else:
            self._tally.failures[f"http_{answer.status} instead of {expected}"] += 1

    async def _vanish(self, session: aiohttp.ClientSession) -> None:
        headers = {"Content-Type": "application/json"}
        data = self._body(stream=True, max_tokens=200)
        try:
            async with session.post(self._url, data=data, headers=headers) as answer:
                await answer.content.readany()
            self._tally.vanished += 1
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            self._tally.failures[type(error).__name__] += 1

    def _body(self, content: str = "hello", **changes: object) -> bytes:
        messages = [{"role": "user", "content": content}]
        body = {"model": self._served.model, "messages": messages, "max_tokens": 1, **changes}
        return json.dumps(body).encode()


async def watch(
    series: dict[str, Series], seconds_of: list[float], *, interval: float, say: Callable[[], None]
) -> None:
    start = time.monotonic()
    while True:
        seconds_of.append(time.monotonic() - start)
        for one in series.values():
            one.sample()
        say()
        await asyncio.sleep(interval - (time.monotonic() - start) % interval)


def soak(
    model: str | Path,
    *,
    seconds: float,
    rate: float = 2.0,
    num_replicas: int = 2,
    num_lines: int = 20,
    allowed: Mapping[str, float] = ALLOWED_GROWTH,
    say: Callable[[str], None] = print,
) -> list[str]:
    """Serve a model on the connected Ray, load it, and return what is wrong (nothing: passed)."""
    tally, times = Tally(), []
    interval = min(10.0, seconds / 20)
    source = ModelSource(model=str(model))
    with ServedModel(source, engine="transformers", num_replicas=num_replicas) as served:
        series = {
            role: Series(process=process)
            for role, process in watched_processes(served.app_name).items()
        }
        due = 0.0

        def line() -> None:
            nonlocal due
            if times[-1] < due:
                return
            due += seconds / num_lines
            used = ", ".join(
                f"{role} {one.memory_bytes[-1] / MIB:.1f} MiB {one.open_files[-1]:.0f} files"
                for role, one in series.items()
            )
            say(
                f"{times[-1]:6.0f} s: {used}; {tally.answered} answered, "
                f"{tally.refused_as_due} refused as due, {tally.vanished} vanished, "
                f"failed: {dict(tally.failures) or 'none'}"
            )

        async def run() -> None:
            watching = asyncio.create_task(watch(series, times, interval=interval, say=line))
            await Traffic(served, tally).offer(rate=rate, seconds=seconds)
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)

        asyncio.run(run())
    say(
        f"{tally.answered / seconds:.2f} answers/s of {rate:g} requests/s offered, "
        f"at most {tally.most_in_flight} in flight"
    )
    return judge(series, times, tally, allowed=allowed, say=say)


def judge(
    series: dict[str, Series],
    times: list[float],
    tally: Tally,
    *,
    allowed: Mapping[str, float] = ALLOWED_GROWTH,
    say: Callable[[str], None],
) -> list[str]:
    """Print the slope of every series and return what is wrong."""
    wrong = [f"{number} requests failed: {kind}" for kind, number in tally.failures.items()]
    for role, one in series.items():
        if one.ended:
            wrong.append(f"the process of {role} has ended")
            continue
        for name, scale, unit in (("memory_bytes", MIB, "MiB"), ("open_files", 1.0, "files")):
            values = getattr(one, name)
            trend = fit_trend(times, values)
            hourly = [
                3600 / scale * slope
                for slope in (trend.slope_per_second, trend.low_per_second, trend.high_per_second)
            ]
            say(
                f"{role}: {values[0] / scale:.1f} -> {values[-1] / scale:.1f} {unit}, slope "
                f"{hourly[0]:+.2f} {unit}/h ({hourly[1]:+.2f} to {hourly[2]:+.2f}) "
                f"over the last {trend.span_seconds:.0f} s"
            )
            if trend.grows(allowed[name]):
                wrong.append(f"{name} of {role} grow by {hourly[0]:.1f} {unit} per hour")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--rate", type=float, default=2.0, help="requests per second")
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--model", help="a checkpoint; a tiny random one without")
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as folder, ray_session("local", num_cpus=8):
        wrong = soak(
            args.model or tiny_model(Path(folder)),
            seconds=60 * args.minutes,
            rate=args.rate,
            num_replicas=args.replicas,
            say=lambda text: print(text, flush=True),
        )
    print("\n".join(wrong) if wrong else "passed: nothing grows, nothing failed")
    return 1 if wrong else 0


def tiny_model(folder: Path) -> Path:
    return save_pair(folder)[1]


if __name__ == "__main__":
    sys.exit(main())
