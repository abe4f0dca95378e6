"""Searches against services whose capacity is known."""

from __future__ import annotations

from typing import Any

import pytest

from expo_ray.loadtests.loads import Load
from expo_ray.loadtests.options import LoadtestOptions
from expo_ray.loadtests.search import find_highest_rate, find_saturation

OPTIONS = LoadtestOptions(e2el_slo_ms=100.0)


class Service:
    """Serves at most `capacity` requests a second; one takes a tenth of a second."""

    def __init__(self, capacity: float, **flaws: Any) -> None:
        self.capacity = capacity
        self.flaws = flaws
        self.asked: list[float] = []

    def __call__(self, load: Load) -> dict[str, Any]:
        wanted = load.rate or (load.concurrency or 0) * 10.0
        self.asked.append(load.rate or load.concurrency or 0)
        served = min(wanted, self.capacity)
        return {
            "concurrency": load.concurrency,
            "offered_rate": load.rate,
            "num_requests": 100,
            "completed": 100,
            "failed": 0,
            "errors": {},
            "client_saturated": False,
            "void_reasons": [],
            "keeps_up": None if load.rate is None else wanted <= self.capacity,
            "goodput_share": 1.0 if wanted <= self.capacity else 0.5,
            "output_throughput": served * 7,
            "request_throughput": served,
            "steady": None,
            **{key: value(wanted) for key, value in self.flaws.items()},
        }


def test_concurrency_doubles_until_it_brings_no_more() -> None:
    service = Service(75.0)
    result = find_saturation(service, [Load(concurrency=1)], OPTIONS)
    assert service.asked == [1, 2, 4, 8, 16]
    assert result["found"] is True
    assert result["load"] == {"concurrency": 8, "rate": None}
    assert result["request_throughput"] == 75.0
    assert "16 in flight instead of 8 gained 0.0%" in result["reason"]


def test_rates_double_from_the_last_given() -> None:
    service = Service(75.0)
    result = find_saturation(service, [Load(rate=10.0), Load(rate=30.0)], OPTIONS)
    assert service.asked == [10, 30, 60, 120]
    assert result["load"] == {"concurrency": None, "rate": 60.0}
    assert (result["reason"], result["request_throughput"]) == (
        "completions fell behind arrivals",
        75.0,
    )


def test_a_client_at_its_end_is_no_saturation_of_the_service() -> None:
    void = {"client_saturated": lambda load: load > 20, "void_reasons": lambda load: ["late"]}
    result = find_saturation(Service(1e9, **void), [Load(rate=10.0)], OPTIONS)
    assert result["found"] is False
    assert result["reason"] == "the client could not keep up: late"


def test_nor_is_it_the_highest_rate_within_the_objectives() -> None:
    void = {"client_saturated": lambda load: load > 20, "void_reasons": lambda load: ["late"]}
    result = find_highest_rate(Service(1e9, **void), 10.0, OPTIONS)
    assert (result["rate"], result["found"]) == (20.0, False)
    assert "the client could not keep up: late" in result["reason"]
    # A service that fails below that bounds its rate by itself.
    result = find_highest_rate(Service(15.0, **void), 10.0, OPTIONS)
    assert (result["found"], result["rate"] <= 15.0 < result["failed_rate"]) == (True, True)


@pytest.mark.parametrize("search", ["saturation", "slo"])
def test_a_load_of_which_nothing_can_be_told_ends_the_search_without_a_find(search: str) -> None:
    service = Service(1e9, keeps_up=lambda load: None if load > 20 else True)
    if search == "slo":
        result = find_highest_rate(service, 10.0, OPTIONS)
    else:
        result = find_saturation(service, [Load(rate=10.0)], OPTIONS)
        assert service.asked == [10, 20, 40]
    assert result["found"] is False
    assert "answers took too long" in result["reason"]


def test_answers_without_text_end_the_sweep() -> None:
    silent = {
        "failed": lambda load: 60 * (load > 20),
        "errors": lambda load: {"empty": 60} if load > 20 else {},
    }
    result = find_saturation(Service(1e9, **silent), [Load(rate=10.0)], OPTIONS)
    assert (result["found"], result["load"]["rate"]) == (True, 20.0)
    assert result["reason"] == "60 of 100 answers have no text"


def test_errors_end_the_sweep() -> None:
    failing = {"failed": lambda load: 2 * (load > 20), "errors": lambda load: {"http_503": 2}}
    result = find_saturation(Service(1e9, **failing), [Load(rate=10.0)], OPTIONS)
    assert (result["found"], result["load"]["rate"]) == (True, 20.0)
    assert result["reason"] == "2 of 100 requests failed"


@pytest.mark.parametrize("start", [1.0, 75.0, 1000.0])
def test_the_highest_rate_within_the_objectives(start: float) -> None:
    service = Service(75.0)
    options = LoadtestOptions(e2el_slo_ms=100.0, search_precision=0.05, max_points=30)
    result = find_highest_rate(service, start, options)
    assert result["found"] is True
    assert result["rate"] <= 75.0 < result["failed_rate"]
    assert result["failed_rate"] - result["rate"] <= 0.05 * result["rate"]
    failed = f"at {result['failed_rate']:.3g} requests per second, "
    assert f"{failed}50.0% of requests met the objectives" in result["reason"]


def test_no_rate_is_within_them() -> None:
    service = Service(0.0)
    result = find_highest_rate(service, 8.0, LoadtestOptions(e2el_slo_ms=1.0, max_points=4))
    assert service.asked == [8, 4, 2, 1]
    assert (result["rate"], result["found"]) == (None, False)


def test_a_search_that_was_cut_short_says_so() -> None:
    result = find_highest_rate(Service(1e9), 1.0, LoadtestOptions(e2el_slo_ms=1.0, max_points=3))
    assert (result["rate"], result["failed_rate"], result["found"]) == (4.0, None, False)
    assert result["reason"] == "3 points were not enough; every rate passed"
