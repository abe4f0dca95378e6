"""From recorded timestamps to the figures of one point. No clock, no network.

Names and definitions are those of `vllm bench serve`, with two differences on purpose: latency
counts from the intended send time (figures named `_from_send` count from the actual one), and
what does not apply is None instead of zero. The first token is the first that was generated,
thoughts included; `ttfat_ms` is the time to the first token of the answer. Latencies describe
completed requests; failures are counted beside them and count against the goodput.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from expo_ray.loadtests.interruptions import find_interruptions
from expo_ray.loadtests.options import LoadtestOptions
from expo_ray.loadtests.records import RequestRecord
from expo_ray.loadtests.windows import (
    completions,
    in_flight,
    keeps_up,
    longest_gap,
    mean_in_flight,
    steady_window,
    tokens_within,
)

PERCENTILES = (90, 95, 99)
_MIN_ACHIEVED_SHARE = 0.95
_MS = 1e3


def summarize_point(
    records: Sequence[RequestRecord],
    *,
    options: LoadtestOptions,
    concurrency: int | None = None,
    offered_rate: float | None = None,
    loop_lag_seconds: Sequence[float] = (),
) -> dict[str, Any]:
    """Return one point of summary.json.

    Args:
        records: The requests of the point, at least one of them measured; those of the ramp and
            the cool-down are load, and are not measured.
        options: Objectives and limits.
        concurrency: Requests in flight of a closed loop.
        offered_rate: Requests per second of an open loop; exactly one of the two is given.
        loop_lag_seconds: How late the client's event loop woke up, sampled all along.
    """
    records = [r for r in records if r.phase != "warmup"]
    measured = [r for r in records if r.phase == "measured"]
    good = [record for record in measured if record.error is None]
    duration = max(r.done_seconds for r in measured) - min(r.intended_seconds for r in measured)
    inputs, outputs = _total(good, "input_tokens"), _total(good, "output_tokens")
    both = None if inputs is None or outputs is None else inputs + outputs
    meeting = _num_meeting(good, options)
    client = _client_figures(
        records,
        options=options,
        loop_lag_seconds=loop_lag_seconds,
        is_open=offered_rate is not None,
    )
    gap = longest_gap(records)
    return {
        "mode": "closed" if offered_rate is None else "open",
        "concurrency": concurrency,
        "offered_rate": offered_rate,
        "achieved_rate": _rate_of([r.sent_seconds for r in measured]),
        **client,
        "errors": dict(sorted(Counter(r.error for r in measured if r.error is not None).items())),
        "num_requests": len(measured),
        "completed": len(good),
        "failed": len(measured) - len(good),
        "duration": duration,
        "total_input_tokens": inputs,
        "total_output_tokens": outputs,
        "total_cached_tokens": _total(good, "cached_tokens"),
        "total_reasoning_tokens": _total(good, "reasoning_tokens"),
        "with_thoughts": sum(r.first_answer != 0 for r in good),
        "without_answer": sum(r.first_answer is None for r in good),
        "request_throughput": _rate(len(good), duration),
        "request_goodput": _rate(meeting, duration),
        "goodput_share": None if meeting is None else meeting / len(measured),
        "output_throughput": _rate(outputs, duration),
        "total_token_throughput": _rate(both, duration),
        "mean_in_flight": mean_in_flight(records),
        "max_in_flight": max(number for _, number in in_flight(records)),
        "keeps_up": None if offered_rate is None else keeps_up(records),
        "longest_gap_ms": None if gap is None else gap.duration * _MS,
        "longest_gap_at_seconds": None if gap is None else gap.start_seconds,
        "interruptions": find_interruptions(records),
        "answered_by": _answered_by(measured),
        "replicas": dict(sorted(Counter(r.replica for r in good if r.replica).items())) or None,
        **_latencies(good),
        "steady": _steady(records, options, concurrency),
    }


def describe(values: Sequence[float], name: str) -> dict[str, float | None]:
    """Return count, mean, standard deviation, median and percentiles under published names.

    Args:
        values: May be empty: then everything but the count is None.
        name: What they are, such as `ttft_ms`.
    """
    keys = ["mean", "std", "median", *(f"p{p}" for p in PERCENTILES)]
    count = {f"count_{name}": len(values)}
    if not values:
        return {**count, **{f"{key}_{name}": None for key in keys}}
    array = np.asarray(values, dtype=np.float64)
    figures = [array.mean(), array.std(), np.median(array), *np.percentile(array, PERCENTILES)]
    named = {f"{key}_{name}": float(figure) for key, figure in zip(keys, figures, strict=True)}
    return {**count, **named}


def over_budget(point: Mapping[str, Any], options: LoadtestOptions) -> str | None:
    """Say what a service did more often than it may: fail requests, or answer without text.

    A model may have nothing to say, so that answers which ended properly, but without text, have a
    budget of their own.
    """
    sent, empty = point["num_requests"], point["errors"].get("empty", 0)
    if point["failed"] - empty > options.max_error_rate * sent:
        return f"{point['failed']} of {sent} requests failed"
    if empty > options.max_empty_rate * sent:
        return f"{empty} of {sent} answers have no text"
    return None


def _answered_by(records: Sequence[RequestRecord]) -> list[dict[str, Any]]:
    """Return who answered how many requests: more than one where a service mixes models."""
    told = Counter((r.model, r.system_fingerprint) for r in records if r.model is not None)
    return [
        {"model": model, "system_fingerprint": fingerprint, "num_requests": number}
        for (model, fingerprint), number in told.most_common()
    ]


def _latencies(good: Sequence[RequestRecord]) -> dict[str, float | None]:
    def waited(record: RequestRecord) -> float:
        return record.sent_seconds - record.intended_seconds

    figures: dict[str, list[float | None]] = {
        "ttft_ms": [r.ttft_seconds for r in good],
        "ttfat_ms": [r.ttfat_seconds for r in good],
        "tpot_ms": [r.tpot_seconds for r in good],
        "itl_ms": [later - sooner for r in good for sooner, later in pairwise(r.token_seconds)],
        "e2el_ms": [r.e2el_seconds for r in good],
        "ttft_from_send_ms": [(r.ttft_seconds or 0) - waited(r) for r in good],
        "e2el_from_send_ms": [(r.e2el_seconds or 0) - waited(r) for r in good],
    }
    return {
        key: value
        for name, seconds in figures.items()
        for key, value in describe([s * _MS for s in seconds if s is not None], name).items()
    }


def _client_figures(
    records: Sequence[RequestRecord],
    *,
    options: LoadtestOptions,
    loop_lag_seconds: Sequence[float],
    is_open: bool,
) -> dict[str, Any]:
    """Return how the client itself did; its failings make the point void."""
    dispatch = [r.sent_seconds - r.intended_seconds for r in records]
    limit = options.max_client_lag_ms
    reasons = [
        f"{what} {_p99(lag) * _MS:.0f} ms late at the 99th percentile, {limit:g} are allowed"
        for what, lag in (("requests left", dispatch), ("the client woke up", loop_lag_seconds))
        if _p99(lag) * _MS > limit
    ]
    wanted = _rate_of([r.intended_seconds for r in records])
    achieved = _rate_of([r.sent_seconds for r in records])
    if is_open and wanted and achieved:
        # The last request may leave as late as any: of a short point that alone is a few percent.
        allowed_seconds = limit / _MS / (len(records) - 1)
        if 1 / achieved > 1 / (_MIN_ACHIEVED_SHARE * wanted) + allowed_seconds:
            reasons.append(f"{achieved:.4g} requests/s left instead of {wanted:.4g}")
    return {
        "client_saturated": bool(reasons),
        "void_reasons": reasons,
        "mean_dispatch_lag_ms": float(np.mean(dispatch)) * _MS,
        "p99_dispatch_lag_ms": _p99(dispatch) * _MS,
        "p99_client_loop_lag_ms": _p99(loop_lag_seconds) * _MS,
    }


def _steady(
    records: Sequence[RequestRecord], options: LoadtestOptions, concurrency: int | None
) -> dict[str, Any] | None:
    window = steady_window(records, ramp_seconds=options.ramp_seconds, concurrency=concurrency)
    if window is None:
        return None
    due = [
        r
        for r in records
        if r.error is None and window.start_seconds <= r.intended_seconds <= window.end_seconds
    ]
    num_completed = completions(records, window)
    return {
        "start_seconds": window.start_seconds,
        "end_seconds": window.end_seconds,
        "completed": num_completed,
        "request_throughput": _rate(num_completed, window.duration),
        "output_throughput": _rate(tokens_within(records, window), window.duration),
        **_latencies(due),
    }


def _total(records: Sequence[RequestRecord], field: str) -> int | None:
    counts = [getattr(record, field) for record in records]
    return None if any(count is None for count in counts) else sum(counts)


def _rate(count: float | None, duration: float) -> float | None:
    return None if count is None or duration <= 0 else count / duration


def _rate_of(times: Sequence[float]) -> float | None:
    span = max(times) - min(times)
    return (len(times) - 1) / span if span > 0 else None


def _num_meeting(records: Sequence[RequestRecord], options: LoadtestOptions) -> int | None:
    limits: dict[Callable[[RequestRecord], float | None], float | None] = {
        lambda r: r.ttft_seconds: options.ttft_slo_ms,
        lambda r: r.tpot_seconds: options.tpot_slo_ms,
        lambda r: r.e2el_seconds: options.e2el_slo_ms,
    }
    active = [(figure, limit) for figure, limit in limits.items() if limit is not None]
    needs_tokens = options.tpot_slo_ms is not None
    if not active or (needs_tokens and _total(records, "streamed_tokens") is None):
        return None
    # A time per further token does not exist below two tokens and is no violation.
    return sum(
        all((figure(record) or 0.0) * _MS <= limit for figure, limit in active)
        for record in records
    )


def _p99(seconds: Sequence[float]) -> float:
    return float(np.percentile(seconds, 99)) if len(seconds) else 0.0
