from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from expo_ray.loadtests.metrics import describe, over_budget, summarize_point
from expo_ray.loadtests.options import LoadtestOptions
from expo_ray.loadtests.records import RequestRecord

OPTIONS = LoadtestOptions()


def record(request_id: int = 0, **fields: Any) -> RequestRecord:
    return RequestRecord(
        **{
            "request_id": request_id,
            "prompt_id": "p",
            "intended_seconds": 0.0,
            "sent_seconds": 0.0,
            "done_seconds": 1.0,
        }
        | fields
    )


GOOD = record(
    intended_seconds=1.0,
    sent_seconds=1.25,
    token_seconds=(2.0, 2.5, 3.5),
    done_seconds=4.0,
    input_tokens=10,
    output_tokens=4,
    finish_reason="stop",
)
ONE_TOKEN = record(
    1,
    intended_seconds=2.0,
    sent_seconds=2.0,
    token_seconds=(2.5,),
    done_seconds=2.5,
    input_tokens=6,
    output_tokens=1,
)
FAILED = record(2, intended_seconds=0.0, sent_seconds=0.5, done_seconds=5.0, error="http_503")
EMPTY = record(3, intended_seconds=3.0, sent_seconds=3.0, done_seconds=3.1, error="empty")


def test_one_request_from_its_intended_send_time() -> None:
    assert GOOD.ttft_seconds == 1.0
    assert GOOD.e2el_seconds == 2.5
    assert GOOD.tpot_seconds == pytest.approx(1.5 / 3)
    assert ONE_TOKEN.tpot_seconds is None
    assert (FAILED.ttft_seconds, FAILED.e2el_seconds, FAILED.tpot_seconds) == (None, None, None)


def test_a_point_by_hand() -> None:
    point = summarize_point([GOOD, ONE_TOKEN, FAILED, EMPTY], options=OPTIONS, concurrency=2)
    assert point["mode"] == "closed"
    assert (point["concurrency"], point["offered_rate"]) == (2, None)
    assert (point["num_requests"], point["completed"], point["failed"]) == (4, 2, 2)
    assert point["errors"] == {"empty": 1, "http_503": 1}
    assert over_budget(point, LoadtestOptions(max_error_rate=0.25, max_empty_rate=0.25)) is None
    strict = LoadtestOptions(max_error_rate=0.2)
    assert over_budget(point, strict) == "2 of 4 requests failed"
    mute = LoadtestOptions(max_error_rate=0.25, max_empty_rate=0.2)
    assert over_budget(point, mute) == "1 of 4 answers have no text"
    assert point["duration"] == 5.0  # first intended send to last end, failures included
    assert (point["total_input_tokens"], point["total_output_tokens"]) == (16, 5)
    assert point["request_throughput"] == 2 / 5
    assert point["output_throughput"] == 1.0
    assert point["total_token_throughput"] == 21 / 5
    assert point["request_goodput"] is None
    assert point["achieved_rate"] == 3 / 2.5
    assert point["mean_ttft_ms"] == 750
    assert point["median_ttft_ms"] == 750
    assert point["std_ttft_ms"] == 250
    assert point["mean_e2el_ms"] == 1500
    assert point["mean_tpot_ms"] == pytest.approx(500)  # of the one request that has it
    assert point["mean_itl_ms"] == 750  # chunks 500 and 1000 ms apart
    assert point["p90_itl_ms"] == pytest.approx(950)


def test_percentiles_are_those_of_numpy() -> None:
    values = [float(v) for v in np.random.default_rng(0).exponential(size=57)]
    figures = describe(values, "x")
    for p in (90, 95, 99):
        assert figures[f"p{p}_x"] == np.percentile(values, p)
    assert figures["std_x"] == np.std(values)


def test_nothing_completed_gives_null_and_not_zero() -> None:
    point = summarize_point([FAILED], options=OPTIONS, offered_rate=2.0)
    assert point["mode"] == "open"
    for name in ("ttft_ms", "tpot_ms", "itl_ms", "e2el_ms"):
        assert {point[f"{key}_{name}"] for key in ("mean", "std", "median", "p99")} == {None}
    assert (point["completed"], point["request_throughput"]) == (0, 0)
    assert point["achieved_rate"] is None


def test_missing_usage_makes_token_figures_null() -> None:
    silent = record(token_seconds=(0.5, 0.6), done_seconds=0.6)
    point = summarize_point([GOOD, silent], options=OPTIONS, concurrency=1)
    for key in ("total_output_tokens", "output_throughput", "total_token_throughput"):
        assert point[key] is None
    assert point["mean_ttft_ms"] == 750


def test_goodput_counts_failures_as_misses() -> None:
    options = LoadtestOptions(ttft_slo_ms=600.0)
    point = summarize_point([GOOD, ONE_TOKEN, FAILED, EMPTY], options=options, concurrency=1)
    assert point["request_goodput"] == 1 / 5
    assert point["goodput_share"] == 1 / 4
    both = LoadtestOptions(ttft_slo_ms=2000.0, tpot_slo_ms=499.0)
    assert summarize_point([GOOD, ONE_TOKEN], options=both, concurrency=1)["goodput_share"] == 0.5


@pytest.mark.parametrize("lag", [0.0, 0.2])
def test_a_client_that_cannot_keep_up_is_called_saturated(lag: float) -> None:
    late = [record(i, sent_seconds=lag, token_seconds=(1.0,), output_tokens=1) for i in range(10)]
    point = summarize_point(late, options=OPTIONS, offered_rate=5.0)
    assert point["client_saturated"] is (lag > 0)
    assert point["p99_dispatch_lag_ms"] == pytest.approx(lag * 1e3)
    on_time = [record(token_seconds=(1.0,), output_tokens=1)]
    sleepy = summarize_point(on_time, options=OPTIONS, concurrency=1, loop_lag_seconds=[lag] * 5)
    assert sleepy["client_saturated"] is (lag > 0)


@pytest.mark.parametrize(("allowed_ms", "is_void"), [(150.0, False), (50.0, True)])
def test_one_late_request_of_a_short_point_is_as_late_as_is_allowed(
    allowed_ms: float, is_void: bool
) -> None:
    def sent(i: int, late: float) -> RequestRecord:
        times = {"intended_seconds": i / 32, "sent_seconds": i / 32 + late, "done_seconds": 2.0}
        return record(i, **times, token_seconds=(2.0,), output_tokens=1)

    point = summarize_point(
        [sent(i, 0.1 if i == 19 else 0.0) for i in range(20)],
        options=LoadtestOptions(max_client_lag_ms=allowed_ms),
        offered_rate=32.0,
    )
    assert point["achieved_rate"] < 0.95 * 32
    assert point["client_saturated"] is is_void


def test_thoughts_are_told_apart_from_the_answer() -> None:
    thinking = record(
        intended_seconds=0.0,
        sent_seconds=0.0,
        done_seconds=0.5,
        token_seconds=(0.1, 0.2, 0.3, 0.4),
        first_answer=2,
        output_tokens=4,
    )
    silent = replace(thinking, request_id=1, first_answer=None)
    point = summarize_point([thinking, silent], options=OPTIONS, concurrency=1)
    assert (point["with_thoughts"], point["without_answer"]) == (2, 1)
    assert point["median_ttft_ms"] == pytest.approx(100)
    assert (point["median_ttfat_ms"], point["count_ttfat_ms"]) == (pytest.approx(300), 1)
    unknown = replace(thinking, unstreamed_tokens=None)
    limits = OPTIONS.model_copy(update={"tpot_slo_ms": 1.0})
    point = summarize_point([unknown], options=limits, concurrency=1)
    assert (point["median_tpot_ms"], point["request_goodput"]) == (None, None)
    assert point["total_output_tokens"] == 4


def test_contract_names() -> None:
    point = summarize_point([GOOD], options=OPTIONS, concurrency=1)
    names = {
        f"{f}_{m}"
        for f in ("mean", "std", "median", "p90", "p95", "p99")
        for m in ("ttft_ms", "ttfat_ms", "tpot_ms", "itl_ms", "e2el_ms")
    }
    assert (
        names
        | {
            "mode",
            "concurrency",
            "offered_rate",
            "achieved_rate",
            "client_saturated",
            "errors",
            "completed",
            "failed",
            "duration",
            "total_input_tokens",
            "total_output_tokens",
            "request_throughput",
            "request_goodput",
            "output_throughput",
            "total_token_throughput",
        }
        <= point.keys()
    )
