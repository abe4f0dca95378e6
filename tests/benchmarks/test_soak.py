"""The soak: that its analysis tells a leak from breathing, and the real thing for seconds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import psutil
import pytest

from benchmarks.soak import ALLOWED_GROWTH, MIB, Series, Tally, fit_trend, judge, soak

TIMES = [10.0 * i for i in range(361)]  # an hour


def breathing(seed: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Memory that fills caches for ten minutes, then rises and falls by some MiB."""
    noise = np.random.default_rng(seed).normal(0, 2 * MIB, len(TIMES))
    times = np.array(TIMES)
    return 400 * MIB + 30 * MIB * np.minimum(times / 600, 1) + 4 * MIB * np.sin(times / 90) + noise


@pytest.mark.parametrize("seed", range(5))
def test_growth_is_told_from_breathing(seed: int) -> None:
    allowed = ALLOWED_GROWTH["memory_bytes"]
    steady = breathing(seed)
    assert not fit_trend(TIMES, list(steady)).grows(allowed)
    leak = steady + 40 * MIB * np.array(TIMES) / 3600
    trend = fit_trend(TIMES, list(leak))
    assert trend.grows(allowed)
    assert 3600 * trend.slope_per_second / MIB == pytest.approx(40, abs=5)
    once = steady.copy()
    once[200:210] += 300 * MIB  # a peak that passes
    once[300:] += 10 * MIB  # one buffer that stays
    assert not fit_trend(TIMES, list(once)).grows(allowed)


def test_what_is_wrong_is_named() -> None:
    def series(memory: float, files: float, *, ended: bool = False) -> Series:
        return Series(
            process=psutil.Process(),
            memory_bytes=[400 * MIB + memory * t for t in TIMES],
            open_files=[50 + files * t for t in TIMES],
            ended=ended,
        )

    def judged(one: Series, *failures: str) -> list[str]:
        tally = Tally()
        tally.failures.update(failures)
        return judge({"replica 0": one}, TIMES, tally, say=lambda text: None)

    assert judged(series(0.0, 0.0)) == []
    assert judged(series(20e3, 0.0)) == ["memory_bytes of replica 0 grow by 68.7 MiB per hour"]
    assert judged(series(0.0, 0.01)) == ["open_files of replica 0 grow by 36.0 files per hour"]
    assert judged(series(0.0, 0.0, ended=True)) == ["the process of replica 0 has ended"]
    assert judged(series(0.0, 0.0), "http_500") == ["1 requests failed: http_500"]


def run(pair: tuple[Path, Path], *, seconds: float, memory_mib: int) -> list[str]:
    lines: list[str] = []
    # So early, replicas still fill their caches: open files, failures and the end of a process
    # show in seconds, a leak of memory only in an hour.
    allowed = {**ALLOWED_GROWTH, "memory_bytes": float(memory_mib * MIB)}
    wrong = soak(pair[1], seconds=seconds, rate=6.0, num_lines=4, allowed=allowed, say=lines.append)
    text = "\n".join(lines)
    for role in ("replica 0", "replica 1", "proxy", "controller", "client"):
        assert f"{role}: " in text
    assert "answers/s of 6 requests/s offered" in lines[-11]
    return wrong


@pytest.mark.slow
def test_some_seconds_of_it(ray_cluster: str, pico_pair: tuple[Path, Path]) -> None:
    assert run(pico_pair, seconds=15, memory_mib=128) == []


@pytest.mark.slow
def test_a_minute_of_it(ray_cluster: str, pico_pair: tuple[Path, Path]) -> None:
    assert run(pico_pair, seconds=90, memory_mib=64) == []
