from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from expo_ray.errors import ConfigError, EvaluationError, ServingError, TableError
from expo_ray.loadtests import LoadtestOptions, loadtest
from expo_ray.loadtests.stream import Endpoint
from expo_ray.loadtests.target import open_target
from tests.loadtests.fake_service import FakeService, running_service


@pytest.fixture
def service() -> Iterator[FakeService]:
    with running_service() as running:
        yield running


def write_prompts(folder: Path, *orders: str) -> Path:
    path = folder / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": order}) + "\n" for order in orders))
    return path


def test_both_loops_against_a_running_service(
    service: FakeService, tmp_path: Path, ray_cluster: str
) -> None:
    service.models[0]["alpha"] = 0.3
    service.names_itself = {"model": "fake", "system_fingerprint": "abc"}
    prompts = write_prompts(tmp_path, *["tokens=3 wait=0.005"] * 10)
    summary = loadtest(
        service.url,
        prompts=prompts,
        output=tmp_path / "out",
        concurrency=[1, 3],
        rate=[50.0],
        num_requests=8,
        max_tokens=5,
        options=LoadtestOptions(num_clients=2, num_warmup=2, extra_body={"temperature": 0}),
        address=ray_cluster,
    )
    assert summary == json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (summary["target"], summary["model"]) == (service.url, "fake")
    assert (summary["weights_digest"], summary["alpha"]) == ("abc", 0.3)
    assert summary["prompts_reused"] is True
    closed, busier, opened = summary["points"]
    assert (closed["mode"], closed["concurrency"]) == ("closed", 1)
    assert (busier["mode"], busier["concurrency"]) == ("closed", 3)
    assert (opened["mode"], opened["offered_rate"]) == ("open", 50.0)
    for point in summary["points"]:
        assert (point["completed"], point["failed"], point["errors"]) == (8, 0, {})
        assert (point["total_input_tokens"], point["total_output_tokens"]) == (56, 24)
        assert point["answered_by"] == [{**service.names_itself, "num_requests": 8}]
        assert point["median_ttft_ms"] >= 5
    assert service.most_in_flight >= 2
    assert {body["max_tokens"] for body in service.requests} == {5}
    assert {body["temperature"] for body in service.requests} == {0}
    rows = pq.read_table(tmp_path / "out" / "requests.parquet").to_pylist()
    assert [row["request_id"] for row in rows] == list(range(30))
    assert [row["phase"] for row in rows[:3]] == ["warmup", "warmup", "measured"]
    assert {row["point"] for row in rows} == {0, 1, 2}


def test_errors_above_the_budget_fail_after_everything_is_written(
    service: FakeService, tmp_path: Path, ray_cluster: str
) -> None:
    prompts = write_prompts(tmp_path, "tokens=2", "http_500", "tokens=2", "cut")
    with pytest.raises(EvaluationError) as error:
        loadtest(
            service.url,
            prompts=prompts,
            output=tmp_path / "out",
            concurrency=[2],
            num_requests=8,
            options=LoadtestOptions(num_warmup=0),
            address=ray_cluster,
        )
    assert error.value.got == "http_500 2, mid_stream 2"
    [point] = json.loads((tmp_path / "out" / "summary.json").read_text())["points"]
    assert (point["completed"], point["failed"]) == (4, 4)
    assert point["errors"] == {"http_500": 2, "mid_stream": 2}
    rows = pq.read_table(tmp_path / "out" / "requests.parquet").to_pylist()
    assert [row["error"] for row in rows[:4]] == [None, "http_500", None, "mid_stream"]


def test_answers_without_text_are_counted_and_allowed_until_most_are(
    service: FakeService, tmp_path: Path, ray_cluster: str
) -> None:
    def run(*orders: str) -> dict[str, Any]:
        return loadtest(
            service.url,
            prompts=write_prompts(tmp_path, *orders),
            output=tmp_path / "out",
            concurrency=[1],
            num_requests=4,
            options=LoadtestOptions(num_warmup=0, num_clients=1),
            address=ray_cluster,
        )

    [point] = run("tokens=2", "empty")["points"]
    assert (point["completed"], point["errors"]) == (2, {"empty": 2})
    with pytest.raises(EvaluationError, match="3 of 4 answers have no text at 1 in flight"):
        run("tokens=2", "empty", "empty", "empty")


def test_wrong_requests_write_nothing(service: FakeService, tmp_path: Path) -> None:
    prompts = write_prompts(tmp_path, "tokens=1")
    output = tmp_path / "out"
    with pytest.raises(ConfigError, match="no load"):
        loadtest(service.url, prompts=prompts, output=output)
    with pytest.raises(ConfigError, match="above 0"):
        loadtest(service.url, prompts=prompts, output=output, rate=[0.0])
    with pytest.raises(ConfigError, match="needs requests"):
        loadtest(service.url, prompts=prompts, output=output, concurrency=[1], num_requests=0)
    with pytest.raises(TableError):
        loadtest(service.url, prompts=tmp_path / "none.jsonl", output=output, concurrency=[1])
    assert not output.exists()


def test_wrong_targets_write_nothing(
    service: FakeService, tmp_path: Path, ray_cluster: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(target: str, **more: Any) -> None:
        loadtest(
            target,
            prompts=write_prompts(tmp_path, "tokens=1"),
            output=tmp_path / "out",
            concurrency=[1],
            address=ray_cluster,
            **more,
        )

    with pytest.raises(ServingError, match="does not answer"):
        run("http://127.0.0.1:1")
    with pytest.raises(ServingError, match="does not answer"):
        run(f"{service.url}/elsewhere")
    with pytest.raises(ConfigError, match="already has its weights"):
        run(service.url, alpha=0.3)
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    with pytest.raises(ConfigError, match="API key is not set"):
        run(service.url, options=LoadtestOptions(api_key_env="NO_SUCH_KEY"))
    service.models.append({"id": "another"})
    with pytest.raises(ConfigError, match="not exactly one model") as error:
        run(service.url)
    assert error.value.got == "another, fake"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("answer", [404, 405, "not a list"])
def test_a_service_that_lists_no_models_is_tested_by_name(
    service: FakeService, answer: int | str
) -> None:
    def resolved(**options: Any) -> Endpoint:
        settings = LoadtestOptions(**options)
        with open_target(service.url, initial=None, alpha=None, options=settings) as endpoint:
            return endpoint

    service.lists = answer
    endpoint = resolved(model="named")
    assert (endpoint.model, endpoint.weights_digest) == ("named", None)
    with pytest.raises(ServingError) as error:
        resolved()
    assert "model=NAME" in str(error.value.hint)


def test_a_service_whose_list_needs_a_key_is_not_tested(service: FakeService) -> None:
    service.lists = 401
    settings = LoadtestOptions(model="named")
    with (
        pytest.raises(ServingError, match="does not answer"),
        open_target(service.url, initial=None, alpha=None, options=settings),
    ):
        pass


def test_a_model_is_served_for_the_time_of_the_test(
    pico_pair: tuple[Path, Path], tmp_path: Path, ray_cluster: str
) -> None:
    initial, aligned = pico_pair
    summary = loadtest(
        str(aligned),
        prompts=write_prompts(tmp_path, "Hello.", "Good morning.", "Good night."),
        output=tmp_path / "out",
        concurrency=[2],
        num_requests=6,
        max_tokens=4,
        initial=str(initial),
        alpha=0.5,
        options=LoadtestOptions(num_warmup=2),
        address=ray_cluster,
    )
    assert (summary["model"], summary["alpha"]) == ("aligned@alpha=0.5", 0.5)
    assert summary["weights_digest"].startswith("blake3:")
    [point] = summary["points"]
    assert set(point["errors"]) <= {"empty"}  # a random model may say nothing
    assert 0 < point["total_output_tokens"] <= 6 * 4


def test_a_ramp_a_cool_down_and_a_trace(
    service: FakeService, tmp_path: Path, ray_cluster: str
) -> None:
    trace = tmp_path / "trace.jsonl"
    own = "tokens=2 trace=1"
    trace.write_text(
        '{"seconds": 0}\n' + json.dumps({"seconds": 0.1, "prompt": own, "max_tokens": 4}) + "\n"
    )
    summary = loadtest(
        service.url,
        prompts=write_prompts(tmp_path, *["tokens=3 wait=0.005"] * 5),
        output=tmp_path / "out",
        concurrency=[2],
        rate=[50.0],
        trace=trace,
        num_requests=8,
        max_tokens=5,
        options=LoadtestOptions(
            num_clients=2, num_warmup=0, ramp_seconds=0.4, num_cooldown=3, unique_prompts=True
        ),
        address=ray_cluster,
    )
    rows = pq.read_table(tmp_path / "out" / "requests.parquet").to_pylist()
    closed, opened, replayed = ([r for r in rows if r["point"] == i] for i in range(3))
    for point in (closed, opened):
        phases = [row["phase"] for row in point]
        assert (phases.count("measured"), phases.count("cooldown")) == (8, 3)
        assert phases.count("ramp") >= 2
        assert all(r["intended_seconds"] < 0.4 for r in point if r["phase"] == "ramp")
        assert all(r["intended_seconds"] >= 0.4 for r in point if r["phase"] == "measured")
    assert [row["intended_seconds"] for row in replayed] == [0.0, 0.1]
    assert [point["num_requests"] for point in summary["points"]] == [8, 8, 2]
    assert [point["trace"] for point in summary["points"]] == [False, False, True]
    assert summary["points"][2]["offered_rate"] == pytest.approx(10.0)
    [asked] = [b for b in service.requests if own in b["messages"][0]["content"]]
    assert asked["max_tokens"] == 4
    once = {b["messages"][0]["content"] for b in service.requests if own not in str(b)}
    assert len(once) > 20  # five prompts, each with letters of its own in every request
    assert (summary["prefix_cache"], summary["prompts_reused"]) == ("unique", False)
    assert summary["clients"]["num_clients"] == 2
    assert summary["clients"]["beside_replicas"] is True  # the service listens on this machine


def test_searches_end_where_the_service_does(
    service: FakeService, tmp_path: Path, ray_cluster: str
) -> None:
    service.one_at_a_time = True  # some 30 requests a second, whatever is asked

    def run(**load: Any) -> dict[str, Any]:
        options = LoadtestOptions(
            num_warmup=0,
            num_clients=1,
            e2el_slo_ms=300.0,
            arrivals="constant",
            search_precision=0.5,
            search_seconds=0.5,
            max_points=8,
            max_client_lag_ms=5000.0,  # others may use this machine, too
        )
        return loadtest(
            service.url,
            prompts=write_prompts(tmp_path, "tokens=1 wait=0.03"),
            output=tmp_path / "out",
            num_requests=20,
            options=options,
            address=ray_cluster,
            **load,
        )["search"]

    saturated = run(concurrency=[1], find="saturation")
    assert saturated["found"] is True
    assert saturated["load"]["concurrency"] <= 4
    assert 5 < saturated["request_throughput"] < 34
    best = run(rate=[8.0], find="slo")
    assert best["found"] is True
    assert 2 <= best["rate"] < best["failed_rate"]
    with pytest.raises(EvaluationError, match="no load was within the limits"):
        loadtest(
            service.url,
            prompts=write_prompts(tmp_path, "tokens=1 wait=0.03"),
            output=tmp_path / "none",
            rate=[4.0],
            find="slo",
            num_requests=2,
            options=LoadtestOptions(
                num_warmup=0, num_clients=1, e2el_slo_ms=1.0, max_points=2, search_seconds=0.5
            ),
            address=ray_cluster,
        )
    assert json.loads((tmp_path / "none" / "summary.json").read_text())["search"]["rate"] is None


def test_a_search_lasts_as_long_as_answers_need(
    service: FakeService, tmp_path: Path, ray_cluster: str
) -> None:
    summary = loadtest(
        service.url,
        prompts=write_prompts(tmp_path, "tokens=1 wait=0.6"),  # however many ask
        output=tmp_path / "out",
        rate=[20.0],
        find="saturation",
        num_requests=10,
        options=LoadtestOptions(
            num_warmup=0,
            num_clients=1,
            arrivals="constant",
            max_points=1,
            search_seconds=0.5,
            max_client_lag_ms=5000.0,
        ),
        address=ray_cluster,
    )
    short, long = summary["points"]
    assert (short["num_requests"], short["keeps_up"]) == (10, None)
    assert (long["num_requests"] > 40, long["keeps_up"]) == (True, True)
    assert summary["search"]["load"]["rate"] == 20.0


def test_searches_that_make_no_sense(service: FakeService, tmp_path: Path) -> None:
    prompts = write_prompts(tmp_path, "tokens=1")
    for load, message in (
        ({"concurrency": [1], "find": "slo"}, "load to begin with"),
        ({"concurrency": [1], "rate": [1.0], "find": "saturation"}, "load to begin with"),
        ({"rate": [1.0], "find": "slo"}, "no objective"),
    ):
        with pytest.raises(ConfigError, match=message):
            loadtest(service.url, prompts=prompts, output=tmp_path / "out", **load)
    assert not (tmp_path / "out").exists()


def test_labels_that_no_node_has(service: FakeService, tmp_path: Path, ray_cluster: str) -> None:
    with pytest.raises(ConfigError, match="labels"):
        loadtest(
            service.url,
            prompts=write_prompts(tmp_path, "tokens=1"),
            output=tmp_path / "out",
            concurrency=[1],
            options=LoadtestOptions(client_labels={"role": "load"}),
            address=ray_cluster,
        )
