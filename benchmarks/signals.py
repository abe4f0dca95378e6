"""Stop commands at random moments on a loaded machine: is a signal ever lost?

    python -m benchmarks.signals --trials 2000 --commands 24

Each trial is a process that ends a command in our way, doing what loses signals: system calls that
wait, finalizers and weak references, code that takes every exception, processes started. It is told
to stop after a random time and must end with 130 or 143. `--commands` stops real commands on Ray
the same way. Exits 1 where one was lost.

Needs: Linux. Takes: 10 minutes.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

from expo_ray.cli.endings import exit_code_of

LIMIT_SECONDS = 20
COMMAND_LIMIT_SECONDS = 120


def collect_garbage() -> None:
    class Garbage:
        def __del__(self) -> None:
            sum(range(200))

    while True:
        one, other = Garbage(), Garbage()
        one.other, other.other = other, one  # type: ignore[attr-defined]
        weakref.finalize(one, sum, range(200))


def enter_calls() -> None:
    """The signal may come just before a call that waits on."""
    reader, _writer = os.pipe()
    for number in range(random.randrange(2000)):
        os.getppid()
        if number % 100 == 0:
            time.sleep(0.0001)
    os.read(reader, 1)


def wait_for_locks() -> None:
    lock = threading.Lock()
    lock.acquire()
    while True:
        lock.acquire(timeout=random.choice((0.0005, 60)))


def swallow() -> None:
    """Libraries that take whatever comes: once each, as a loop of retries would."""
    while True:
        with contextlib.suppress(BaseException):
            sum(range(5000))
        time.sleep(0.001)


def start_processes() -> None:
    while True:
        subprocess.run(["true"], check=True)


def convert() -> None:
    """As calls of Ray that wait do: another exception of the same kind, and a slow end."""
    try:
        try:
            time.sleep(60)
        except SystemExit:
            raise SystemExit(1) from None
    finally:
        time.sleep(0.15)


def replace_handlers() -> None:
    """As `ray.init` does."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: sys.exit(number))
    time.sleep(60)


WORK = (
    collect_garbage,
    enter_calls,
    wait_for_locks,
    swallow,
    start_processes,
    convert,
    replace_handlers,
)


def stopped_in(work: Callable[[], None], number: int, delay: float) -> int | None:
    """Return with which code a process ended that was told to stop; None: it did not."""
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        os._exit(exit_code_of(work, []))
    time.sleep(delay)
    os.kill(child, number)
    deadline = time.monotonic() + LIMIT_SECONDS
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


@contextlib.contextmanager
def load(num_processes: int) -> Iterator[None]:
    spin = [sys.executable, "-c", "while True: pass"]
    busy = [subprocess.Popen(spin) for _ in range(num_processes)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


def trial_codes(number: int, trials: int) -> dict[str, int]:
    """Return how often processes ended with which code."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    counts: collections.Counter[str] = collections.Counter()
    for trial in range(trials):
        # Held back until the child hears signals: a process starts, then is told to stop.
        signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
        work = WORK[trial % len(WORK)]
        code = stopped_in(work, number, delay=random.uniform(0, 0.03))
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        counts["lost" if code is None else str(code)] += 1
    return dict(counts)


def _interruptible() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def command_codes(number: int, trials: int, folder: Path) -> dict[str, int]:
    """Stop `expo-ray extrapolate` on a Ray of its own after up to ten seconds."""
    from benchmarks.generated_pair import write_pair

    pair = write_pair(folder / signal.Signals(number).name, layers=2, hidden=256)
    counts: collections.Counter[str] = collections.Counter()
    for trial in range(trials):
        # Python itself is not ours to guard: the time counts from where our code begins.
        entry = "from expo_ray.cli.main import main; print('begun', flush=True); main()"
        command = [sys.executable, "-c", entry, "extrapolate", *map(str, pair)]
        command += [str(folder / f"out-{number}-{trial}"), "--alpha", "0.3", "--quiet"]
        process = subprocess.Popen(
            [*command, "--max-shard-size", "100kB", "--address", "local"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=_interruptible,
        )
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(random.uniform(0, 10))
        if process.poll() is not None:
            counts["done before"] += 1
            continue
        process.send_signal(number)
        try:
            _, told = process.communicate(timeout=COMMAND_LIMIT_SECONDS)
            counts[str(process.returncode)] += 1
            if process.returncode != 128 + number:
                sys.stderr.write(told)
        except subprocess.TimeoutExpired:
            counts["lost"] += 1
            process.kill()
    return dict(counts)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--commands", type=int, default=0)
    parser.add_argument("--busy", type=int, default=2 * (os.cpu_count() or 1))
    arguments = parser.parse_args()
    found = {}
    with load(arguments.busy), tempfile.TemporaryDirectory() as folder:
        for number in (signal.SIGTERM, signal.SIGINT):
            began = time.monotonic()
            found[number.name] = {
                "trials": trial_codes(number, arguments.trials),
                "commands": command_codes(number, arguments.commands, Path(folder))
                if arguments.commands
                else {},
                "seconds": round(time.monotonic() - began, 1),
            }
    sys.stdout.write(json.dumps(found) + "\n")
    right = {"SIGTERM": {"143", "done before"}, "SIGINT": {"130", "done before"}}
    codes = {name: {*kinds["trials"], *kinds["commands"]} for name, kinds in found.items()}
    return int(any(codes[name] - right[name] for name in found))


if __name__ == "__main__":
    sys.exit(main())
