from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from expo_ray.loadtests.paired import compare_requests
from expo_ray.loadtests.scaling import balance, proxy_cost, scaling_points


def rows(
    tokens: list[int], seconds: list[float], *, rounds: int = 1, **fields: Any
) -> list[dict[str, Any]]:
    return [
        {
            "round": number,
            "request_id": i,
            "prompt_id": f"p{i}",
            "phase": "measured",
            "error": None,
            "output_tokens": num,
            "intended_seconds": 1.0,
            "done_seconds": 1.0 + taken,
            **fields,
        }
        for number in range(rounds)
        for i, (num, taken) in enumerate(zip(tokens, seconds, strict=True))
    ]


def test_a_longer_answer_parts_tokens_from_requests() -> None:
    # Every answer is 1.5 times as long at the same speed: as many tokens, fewer requests.
    random = np.random.default_rng(0)
    tokens = [int(n) for n in random.integers(50, 150, 40) * 2]
    before = rows(tokens, [n / 100 for n in tokens], rounds=2)
    longer = [n * 3 // 2 for n in tokens]
    result = compare_requests(
        before, rows(longer, [n / 100 for n in longer], rounds=2), is_closed=True
    )
    assert (result["num_pairs"], result["num_prompts"], result["num_unpaired"]) == (80, 40, 0)
    for name, ratio in (("tokens_per_request", 1.5), ("requests_per_second", 1 / 1.5)):
        figure = result[name]
        assert figure["ratio"] == pytest.approx(ratio)
        # All pairs have the same ratio: resampling cannot change it.
        assert (figure["ci_low"], figure["ci_high"]) == pytest.approx((ratio, ratio))
        assert figure["changed"] is True
    speed = result["tokens_per_second"]
    assert speed["ratio"] == pytest.approx(1.0)
    assert "answers: longer (1.50 times, 1.50 to 1.50)" in result["text"]


def test_intervals_hold_what_they_promise() -> None:
    # Ratios of means of exponential times; 95% intervals must hold 1 in about 95 of 100 cases.
    held = 0
    for seed in range(100):
        random = np.random.default_rng(seed)
        times = random.exponential(size=(2, 60)) + 0.5
        sides = [rows([10] * 60, [float(t) for t in side]) for side in times]
        figure = compare_requests(*sides, is_closed=True, seed=seed)["seconds_per_request"]
        held += not figure["changed"]
        assert figure["ci_low"] < figure["ratio"] < figure["ci_high"]
    assert held >= 88


def test_a_round_that_met_a_slow_machine_widens_the_interval() -> None:
    # One model, twice: in one round the machine was slow while the second had its turn.
    random = np.random.default_rng(3)
    times = [float(t) for t in random.uniform(0.9, 1.1, 60)]
    before = rows([10] * 60, times, rounds=4)
    after = rows([10] * 60, times, rounds=4)
    for row in after:
        if row["round"] == 1:
            row["done_seconds"] += 2.0
    figure = compare_requests(before, after, is_closed=True)["tokens_per_second"]
    assert figure["ratio"] == pytest.approx(1 / 1.5, abs=0.01)
    assert not figure["changed"]
    assert figure["ci_low"] < 0.55 and figure["ci_high"] == pytest.approx(1.0)


def test_only_pairs_count() -> None:
    before = rows([10, 10, 10], [1.0, 1.0, 1.0])
    after = rows([20, 20, 20], [1.0, 1.0, 1.0])
    after[1]["error"] = "http_503"
    after[2]["prompt_id"] = "another"
    result = compare_requests(before, after, is_closed=False)
    assert (result["num_pairs"], result["num_unpaired"]) == (1, 4)
    assert result["tokens_per_request"]["ratio"] == 2.0
    assert result["requests_per_second"] is None  # the client decides in an open loop
    nothing = compare_requests(before, [], is_closed=True)
    assert nothing["num_pairs"] == 0
    assert nothing["text"] == "no request completed on both sides"


def point(tokens_per_second: float, **fields: Any) -> dict[str, Any]:
    return {
        "concurrency": 8,
        "client_saturated": False,
        "output_throughput": tokens_per_second,
        "request_throughput": tokens_per_second / 10,
        "median_ttft_ms": 20.0,
        "median_e2el_ms": 200.0,
        "median_tpot_ms": 5.0,
        "replicas": {"a": 10},
        "steady": None,
    } | fields


def test_scaling_by_hand() -> None:
    direct = point(125.0, median_ttft_ms=15.0, median_tpot_ms=4.5)
    two = point(90.0, steady={"output_throughput": 150.0}, replicas={"a": 30, "b": 10})
    [first, second] = scaling_points([(1, [(point(100.0), direct)]), (2, [(two, two)])])
    assert (first["efficiency"], first["busiest_over_mean"]) == (1.0, 1.0)
    assert first["proxy"]["throughput_ratio"] == 0.8
    assert first["proxy"]["added_median_ttft_ms"] == 5.0
    assert first["proxy"]["added_microseconds_per_token"] == 500.0
    assert second["efficiency"] == 0.75  # of the steady part where there is one
    assert (second["busiest_over_mean"], second["idle_replicas"]) == (1.5, 0)


def test_one_odd_round_does_not_decide() -> None:
    rounds = [
        (point(100.0), point(125.0)),
        (point(10.0, replicas={"a": 2, "b": 8}), point(125.0)),  # the machine was busy
        (point(90.0, client_saturated=True), point(100.0)),
    ]
    [found] = scaling_points([(2, rounds)])
    assert (found["output_throughput"], found["request_throughput"]) == (90.0, 9.0)
    assert found["proxy"]["throughput_ratio"] == 0.8  # the median of 0.8, 0.08 and 0.9
    assert found["requests_by_replica"] == {"a": 22, "b": 8}
    assert found["void"] is True


def test_what_is_not_known_of_replicas_stays_unknown() -> None:
    assert balance(None, 2)["busiest_over_mean"] is None
    assert balance({"a": 4}, 2) == {
        "requests_by_replica": {"a": 4},
        "busiest_over_mean": 2.0,
        "idle_replicas": 1,
    }
    silent = point(1.0, median_tpot_ms=None)
    assert proxy_cost(silent, silent)["added_microseconds_per_token"] is None
