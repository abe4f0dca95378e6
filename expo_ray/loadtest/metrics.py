"""From recorded timestamps to the figures of one point. No clock, no network.

Names and definitions are those of `vllm bench serve`, with two differences on purpose: latency
counts from the intended send time, and what does not apply is None instead of zero. Latencies
describe completed requests; failures are counted beside them and count against the goodput.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from expo_ray.loadtest.options import LoadtestOptions
from expo_ray.loadtest.records import RequestRecord

PERCENTILES = (90, 95, 99)


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
        records: The measured requests, without warm-up; at least one.
        options: Objectives and limits.
        concurrency: Requests in flight of a closed loop.
        offered_rate: Requests per second of an open loop; exactly one of the two is given.
        loop_lag_seconds: How late the client's event loop woke up, sampled all along.
    """
    good = [record for record in records if record.error is None]
    duration = max(r.done_seconds for r in records) - min(r.intended_seconds for r in records)
    inputs, outputs = _total(good, "input_tokens"), _total(good, "output_tokens")
    both = None if inputs is None or outputs is None else inputs + outputs
    meeting = _num_meeting(good, options)
    dispatch_lag = [r.sent_seconds - r.intended_seconds for r in records]
    worst = max(_p99(dispatch_lag), _p99(loop_lag_seconds))
    latencies: dict[str, Sequence[float | None]] = {
        "ttft_ms": [r.ttft_seconds for r in good],
        "tpot_ms": [r.tpot_seconds for r in good],
        "itl_ms": [later - sooner for r in good for sooner, later in pairwise(r.token_seconds)],
        "e2el_ms": [r.e2el_seconds for r in good],
    }
    return {
        "mode": "closed" if offered_rate is None else "open",
        "concurrency": concurrency,
        "offered_rate": offered_rate,
        "achieved_rate": _achieved_rate(records),
        "client_saturated": worst * 1e3 > options.max_client_lag_ms,
        "p99_dispatch_lag_ms": _p99(dispatch_lag) * 1e3,
        "p99_client_loop_lag_ms": _p99(loop_lag_seconds) * 1e3,
        "errors": dict(sorted(Counter(r.error for r in records if r.error is not None).items())),
        "num_requests": len(records),
        "completed": len(good),
        "failed": len(records) - len(good),
        "duration": duration,
        "total_input_tokens": inputs,
        "total_output_tokens": outputs,
        "request_throughput": _rate(len(good), duration),
        "request_goodput": _rate(meeting, duration),
        "goodput_share": None if meeting is None else meeting / len(records),
        "output_throughput": _rate(outputs, duration),
        "total_token_throughput": _rate(both, duration),
        **{
            key: value
            for name, seconds in latencies.items()
            for key, value in describe([s * 1e3 for s in seconds if s is not None], name).items()
        },
    }


def describe(values: Sequence[float], name: str) -> dict[str, float | None]:
    """Return mean, standard deviation, median and percentiles under their published names.

    Args:
        values: May be empty: then everything is None.
        name: What they are, such as `ttft_ms`.
    """
    keys = ["mean", "std", "median", *(f"p{p}" for p in PERCENTILES)]
    if not values:
        return {f"{key}_{name}": None for key in keys}
    array = np.asarray(values, dtype=np.float64)
    figures = [array.mean(), array.std(), np.median(array), *np.percentile(array, PERCENTILES)]
    return {f"{key}_{name}": float(figure) for key, figure in zip(keys, figures, strict=True)}


def num_service_errors(point: dict[str, Any]) -> int:
    """Return how many requests of a point the service failed.

    Answers that ended properly but without text are the model's doing.
    """
    return int(point["failed"]) - int(point["errors"].get("empty", 0))


def _total(records: Sequence[RequestRecord], field: str) -> int | None:
    counts = [getattr(record, field) for record in records]
    return None if any(count is None for count in counts) else sum(counts)


def _rate(count: int | None, duration: float) -> float | None:
    return None if count is None or duration <= 0 else count / duration


def _achieved_rate(records: Sequence[RequestRecord]) -> float | None:
    sent = [record.sent_seconds for record in records]
    span = max(sent) - min(sent)
    return (len(sent) - 1) / span if span > 0 else None


def _num_meeting(records: Sequence[RequestRecord], options: LoadtestOptions) -> int | None:
    limits = {
        "ttft_seconds": options.ttft_slo_ms,
        "tpot_seconds": options.tpot_slo_ms,
        "e2el_seconds": options.e2el_slo_ms,
    }
    active = {name: limit for name, limit in limits.items() if limit is not None}
    if not active or ("tpot_seconds" in active and _total(records, "output_tokens") is None):
        return None
    # A time per further token does not exist below two tokens and is no violation.
    return sum(
        all((getattr(record, name) or 0.0) * 1e3 <= limit for name, limit in active.items())
        for record in records
    )


def _p99(seconds: Sequence[float]) -> float:
    return float(np.percentile(seconds, 99)) if len(seconds) else 0.0
