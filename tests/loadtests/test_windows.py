from __future__ import annotations

import numpy as np
import pytest

from expo_ray.loadtests.metrics import summarize_point
from expo_ray.loadtests.options import LoadtestOptions
from expo_ray.loadtests.records import RequestRecord
from expo_ray.loadtests.windows import (
    Window,
    completions,
    in_flight,
    keeps_up,
    longest_gap,
    mean_in_flight,
    steady_window,
    tokens_within,
)
from tests.loadtests.test_metrics import record


def request(due: float, done: float, *tokens: float, **more: object):  # type: ignore[no-untyped-def]
    return record(
        intended_seconds=due,
        sent_seconds=due,
        done_seconds=done,
        token_seconds=tokens,
        output_tokens=4,
        input_tokens=1,
        **more,
    )


A = request(0.0, 2.0, 1.0, 2.0)
B = request(1.0, 4.0, 2.0, 3.0, 3.5, 4.0)
C = request(3.0, 6.0, 5.0, 6.0)


def test_in_flight_by_hand() -> None:
    assert in_flight([A, B, C]) == [(0, 1), (1, 2), (2, 1), (3, 2), (4, 1), (6, 0)]
    assert mean_in_flight([A, B, C]) == pytest.approx((2 + 3 + 3) / 6)


def test_one_request_after_the_other_is_never_zero_in_between() -> None:
    assert in_flight([request(0, 1, 1), request(1, 2, 2)]) == [(0, 1), (1, 1), (2, 0)]


def test_the_steady_part_leaves_out_start_and_drain() -> None:
    window = steady_window([A, B, C])
    assert window == Window(start_seconds=2.0, end_seconds=3.0)
    assert window is not None
    assert completions([A, B, C], window) == 0
    # Of B's four tokens in four chunks the one at second 3; the one at second 2 is its start.
    assert tokens_within([A, B, C], window) == 1.0
    assert steady_window([A]) is None
    assert steady_window([A, B, C], ramp_seconds=2.5) is None


def test_the_steady_part_ends_when_the_first_client_has_nothing_left_to_send() -> None:
    # Two clients with one request in flight each: one is through at 4, the other goes on to 10.
    quick = [request(t, t + 1.0, t + 1.0) for t in (0.0, 1.0, 2.0, 3.0)]
    slow = [request(t, t + 2.5, t + 2.5) for t in (0.0, 2.5, 5.0, 7.5)]
    window = steady_window([*quick, *slow], concurrency=2)
    assert window == Window(start_seconds=1.0, end_seconds=4.0)


def test_cool_down_counts_as_load_and_not_as_measured() -> None:
    cool = request(4.0, 8.0, 8.0, phase="cooldown")
    point = summarize_point([A, B, C, cool], options=LoadtestOptions(), concurrency=2)
    assert (point["num_requests"], point["completed"], point["duration"]) == (3, 3, 6.0)
    steady = point["steady"]
    assert (steady["start_seconds"], steady["end_seconds"]) == (2.0, 4.0)
    assert steady["request_throughput"] == 0.5  # B
    assert steady["output_throughput"] == 1.5  # three of B's tokens
    assert steady["count_ttft_ms"] == 2  # C and the one of the cool-down were due within
    assert point["count_ttft_ms"] == 3


def test_gaps() -> None:
    assert longest_gap([A, B, C]) == Window(start_seconds=0.0, end_seconds=1.0)
    later = request(20.0, 21.5, 20.5, 21.5)
    assert longest_gap([A, B, C, later]) == Window(start_seconds=0.0, end_seconds=1.0)
    dead = record(intended_seconds=20.0, done_seconds=29.0, error="timeout")
    assert longest_gap([A, dead]) == Window(start_seconds=20.0, end_seconds=29.0)
    assert longest_gap([dead]) is None


def test_a_backlog_that_grows_is_not_kept_up_with() -> None:
    steady = [request(i * 0.1, i * 0.1 + 1.0, i * 0.1 + 1.0) for i in range(100)]
    assert keeps_up(steady)
    slow = [request(i * 0.1, i * 0.2 + 1.0, i * 0.2 + 1.0) for i in range(100)]
    assert not keeps_up(slow)


@pytest.mark.parametrize(("rate", "takes"), [(40, 3.0), (64, 1.0), (64, 2.0)])
def test_a_backlog_of_constant_size_is_no_saturation(rate: int, takes: float) -> None:
    def arrivals(num: int) -> list[RequestRecord]:
        due = [i / rate for i in range(num)]
        return [request(t, t + takes, t + takes) for t in due]

    # A hundred requests are due before the first has ended: nothing can be told.
    assert keeps_up(arrivals(100)) is None
    assert keeps_up(arrivals(int(4 * takes * rate))) is True


def test_answers_of_all_lengths_are_no_saturation() -> None:
    random = np.random.default_rng(0)
    due, takes = np.cumsum(random.exponential(1 / 64, 1000)), random.gamma(2, 1.5, 1000)
    every = [request(t, t + s, t + s) for t, s in zip(due.tolist(), takes.tolist(), strict=True)]
    assert keeps_up(every[:100]) is None
    assert keeps_up(every) is True


def test_an_overload_that_holds_up_the_first_answers_is_told_by_the_others() -> None:
    # Sixteen at a time, 50 seconds each: at 5 a second the last wait for six of such rounds.
    held = [request(i / 5, 51.0 * (i // 16 + 1), 51.0 * (i // 16 + 1)) for i in range(100)]
    assert keeps_up(held) is False
