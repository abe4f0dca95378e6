"""Drivers that tests kill: real processes, forked from one that has done the imports already."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
from multiprocessing.process import BaseProcess
from pathlib import Path

from expo_ray.extrapolation import extrapolate, extrapolate_trajectory

OPTIONS = {"alpha": [0.3, 1.0], "max_shard_size": "2MB", "address": "inline"}
PRELOADED = [
    "expo_ray.extrapolation.job",
    "expo_ray.extrapolation.trajectories.job",
    "transformers",
    "huggingface_hub.repocard",
    __name__,
]

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(PRELOADED)


class Driver:
    """One run of `extrapolate` with OPTIONS."""

    def __init__(self, process: BaseProcess) -> None:
        self._process = process

    def is_running(self) -> bool:
        return self._process.exitcode is None

    def send_signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            if self.is_running():
                os.kill(int(self._process.pid or 0), number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def wait(self) -> int | None:
        """Wait until it ends; its exit code, negative where a signal ended it."""
        self._process.join(timeout=60)
        return self._process.exitcode


def start(pair: tuple[Path, Path], output: Path) -> Driver:
    process = _context.Process(target=_run, args=(*pair, output), daemon=True)
    process.start()
    return Driver(process)


def start_along(trajectory: Path, output: Path) -> Driver:
    """Start a run of `extrapolate_trajectory` with OPTIONS and a fit by tensor."""
    process = _context.Process(target=_run_along, args=(trajectory, output), daemon=True)
    process.start()
    return Driver(process)


def _run_along(trajectory: Path, output: Path) -> None:
    extrapolate_trajectory(trajectory, output, fit="rank1", **OPTIONS)


def _run(initial: Path, aligned: Path, output: Path) -> None:
    extrapolate(initial, aligned, output, **OPTIONS)
