"""Two ways of doing one thing, in processes of their own that take turns.

A way is a benchmark's own module with `--side NAME`, which prints one JSON line last:
`phase_seconds`, the useful work alone, and `amount`, what it did.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import psutil

_SAMPLE_SECONDS = 0.2


@dataclass(frozen=True, kw_only=True, slots=True)
class Taken:
    """What one process took, with all that it started."""

    seconds: float
    cpu_seconds: float
    """Of the whole tree, looked at five times a second."""
    phase_seconds: float
    amount: float
    found: dict[str, Any]


class PhaseClock:
    """A `Progress` that takes the time of the line whose description begins with a word."""

    def __init__(self, description: str) -> None:
        self._description = description
        self._started = 0.0
        self.seconds = 0.0

    def start(self, description: str, total: float | None = None, unit: str = "") -> PhaseClock:
        if description.startswith(self._description):
            self._started = time.monotonic()
        return self

    def message(self, text: str) -> None:
        pass

    def advance(self, amount: float = 1) -> None:
        if self._started:
            self.seconds = time.monotonic() - self._started

    def set_total(self, total: float) -> None:
        pass

    def close(self) -> None:
        pass


def take_turns(
    module: str, sides: Sequence[str], arguments: Sequence[str], *, pairs: int, unit: str
) -> dict[str, list[Taken]]:
    """Run every side once per pair, in turns, and print what each took.

    Args:
        module: Of the benchmark.
        sides: Ours first.
        arguments: For `--side NAME`.
        pairs: How often.
        unit: Of the amount.
    """
    found: dict[str, list[Taken]] = {side: [] for side in sides}
    for number in range(pairs):
        for side in list(sides) if number % 2 == 0 else list(sides)[::-1]:
            taken = _run([sys.executable, "-m", module, "--side", side, *arguments])
            found[side].append(taken)
            print(
                f"{side:6} command {taken.seconds:7.1f} s, phase {taken.phase_seconds:7.1f} s, "
                f"{taken.amount / taken.phase_seconds:8.1f} {unit}/s in it, "
                f"{taken.cpu_seconds:7.1f} s of CPU in all",
                flush=True,
            )
    return found


def ratios(found: dict[str, list[Taken]]) -> dict[str, float]:
    """Return how many times as fast the first side is, as medians of the pairs, by what."""
    ours, plain = found.values()
    pairs = list(zip(ours, plain, strict=True))
    return {
        "phase": statistics.median(
            (a.amount / a.phase_seconds) / (b.amount / b.phase_seconds) for a, b in pairs
        ),
        "command": statistics.median(
            (a.amount / a.seconds) / (b.amount / b.seconds) for a, b in pairs
        ),
        "CPU of the command": statistics.median(
            (a.amount / a.cpu_seconds) / (b.amount / b.cpu_seconds) for a, b in pairs
        ),
    }


def judge(found: dict[str, list[Taken]], limits: dict[str, float]) -> int:
    """Print the ratios beside their limits; returns the exit code."""
    got = ratios(found)
    for name, ratio in got.items():
        limit = limits.get(name)
        verdict = "" if limit is None else f" (at least {limit:g}: {_word(ratio >= limit)})"
        print(f"{name}: {ratio:.2f} times as fast as the plain script{verdict}")
    return 0 if all(got[name] >= limit for name, limit in limits.items()) else 1


def _word(is_reached: bool) -> str:
    return "PASS" if is_reached else "MISS"


def _run(command: Sequence[str]) -> Taken:
    started = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    spent: dict[int, float] = {}
    done = threading.Event()
    watcher = threading.Thread(target=_watch, args=(process.pid, spent, done))
    watcher.start()
    output, _ = process.communicate()
    seconds = time.monotonic() - started
    done.set()
    watcher.join()
    if process.returncode:
        sys.exit(f"{' '.join(command)} failed")
    told = last_told(output)
    return Taken(
        seconds=seconds,
        cpu_seconds=sum(spent.values()),
        phase_seconds=told.pop("phase_seconds"),
        amount=told.pop("amount"),
        found=told,
    )


def last_told(output: str) -> dict[str, Any]:
    """Return the last line of JSON of a process; engines say goodbye on standard output, too."""
    told: dict[str, Any] = json.loads(
        next(line for line in output.splitlines()[::-1] if line.startswith("{"))
    )
    return told


def _watch(root: int, spent: dict[int, float], done: threading.Event) -> None:
    """Keep the CPU seconds of a process and of all below it, by process."""
    known: dict[int, psutil.Process] = {}
    while not done.wait(_SAMPLE_SECONDS):
        try:
            top = psutil.Process(root)
            known |= {p.pid: p for p in (top, *top.children(recursive=True)) if p.pid not in known}
        except psutil.Error:
            pass
        for pid, process in known.items():
            try:
                times = process.cpu_times()
            except psutil.Error:
                continue
            spent[pid] = times.user + times.system
