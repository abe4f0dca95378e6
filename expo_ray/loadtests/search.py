"""Which loads to offer when the answer decides: up to saturation, or the highest rate within SLOs.

The functions know a way to measure a load and nothing of how that is done.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from expo_ray.loadtests.loads import Load
from expo_ray.loadtests.metrics import over_budget
from expo_ray.loadtests.options import LoadtestOptions

Point = dict[str, Any]
Measure = Callable[[Load], Point]


def find_saturation(
    measure: Measure, loads: Sequence[Load], options: LoadtestOptions
) -> dict[str, Any]:
    """Offer the given loads, then twice the last again and again, until it brings no more.

    A closed loop is saturated when a higher load adds less than `saturation_gain` of throughput;
    an open one when completions fall behind arrivals. Too many errors end both.

    Args:
        measure: Offers a load and returns its point.
        loads: At least one, ascending.
        options: Limits.

    Returns:
        `kind`, `found`, `reason`, `load` (the highest before saturation), `output_throughput`
        and `request_throughput` (the highest measured).
    """
    best: Point | None = None
    tops: list[Point] = []
    load, pending = loads[0], list(loads[1:])
    reason, found = f"{options.max_points} points were not enough", False
    for _ in range(options.max_points):
        point = measure(load)
        doubt = _doubt(point)
        failing = doubt or _failing(point, options)
        if failing is None or point["completed"]:
            tops.append(point)
        if failing is None and best is not None and load.concurrency is not None:
            failing = _no_gain(best, point, options)
        if failing is not None:
            reason, found = failing, doubt is None
            break
        best = point
        load = pending.pop(0) if pending else load.times(2)
    return {
        "kind": "saturation",
        "found": found,
        "reason": reason,
        "load": None if best is None else _load_of(best),
        "output_throughput": _highest(tops, "output_throughput"),
        "request_throughput": _highest(tops, "request_throughput"),
    }


def find_highest_rate(
    measure: Measure, start_rate: float, options: LoadtestOptions
) -> dict[str, Any]:
    """Search the highest rate at which enough requests meet the SLOs: double, then bisect.

    Args:
        measure: Offers a load and returns its point.
        start_rate: Where to begin; halved while it fails.
        options: Limits.

    Returns:
        `kind`, `found`, `reason`, `rate` (the highest that passed, None where none did),
        `failed_rate` (the lowest that failed; not `found` where the client failed there, or where
        the point told nothing) and the objectives.
    """
    low: float | None = None
    high: float | None = None
    why, is_doubtful = "", False
    rate = start_rate
    for _ in range(options.max_points):
        point = measure(Load(rate=rate))
        problem = _misses(point, options)
        doubt = problem or _doubt(point)
        if doubt is None:
            low = rate
        else:
            high, why, is_doubtful = rate, doubt, problem is None
        if low is not None and high is not None:
            if high - low <= options.search_precision * low:
                break
            rate = (low + high) / 2
        else:
            rate = rate * 2 if high is None else rate / 2
    bounded = low is not None and high is not None
    narrowed = bounded and (high or 0) - (low or 0) <= options.search_precision * (low or 0)
    # What failed was another rate than the one that is reported.
    reason = "every rate passed" if high is None else f"at {high:.3g} requests per second, {why}"
    return {
        "kind": "slo",
        "found": bounded and not is_doubtful,
        "reason": reason if narrowed else f"{options.max_points} points were not enough; {reason}",
        "rate": low,
        "failed_rate": high,
        "slo_share": options.slo_share,
        "ttft_slo_ms": options.ttft_slo_ms,
        "tpot_slo_ms": options.tpot_slo_ms,
        "e2el_slo_ms": options.e2el_slo_ms,
    }


def _doubt(point: Point) -> str | None:
    """Say why a point tells nothing of the service, if so."""
    if point["client_saturated"]:
        return f"the client could not keep up: {'; '.join(point['void_reasons'])}"
    if point["offered_rate"] is not None and point["keeps_up"] is None:
        return "answers took too long to tell whether the service keeps up: raise search_seconds"
    return None


def _failing(point: Point, options: LoadtestOptions) -> str | None:
    behind = "completions fell behind arrivals" if point["keeps_up"] is False else None
    return over_budget(point, options) or behind


def _no_gain(before: Point, point: Point, options: LoadtestOptions) -> str | None:
    gain = _gain(before, point)
    if gain is None or gain >= options.saturation_gain:
        return None
    return f"{point['concurrency']} in flight instead of {before['concurrency']} gained {gain:.1%}"


def _gain(before: Point, point: Point) -> float | None:
    """Return the growth in tokens per second, of the steady parts where both have one."""
    for name in ("output_throughput", "request_throughput"):
        for old, new in ((before["steady"], point["steady"]), (before, point)):
            if old and new and old[name] and new[name] is not None:
                return float(new[name] / old[name] - 1)
    return None


def _misses(point: Point, options: LoadtestOptions) -> str | None:
    """Say what of a service was not good enough, of a point that is not void."""
    share = point["goodput_share"]
    if point["client_saturated"]:
        return None
    if share is not None and share < options.slo_share:
        return f"{share:.1%} of requests met the objectives, {options.slo_share:.1%} must"
    return _failing(point, options)


def _load_of(point: Point) -> dict[str, Any]:
    return {"concurrency": point["concurrency"], "rate": point["offered_rate"]}


def _highest(points: Sequence[Point], name: str) -> float | None:
    return max((p[name] for p in points if p[name] is not None), default=None)
