"""The command `loadtest` against a real HTTP service: flags reach the test, results are shown."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from expo_ray.cli.main import main
from tests.loadtests.fake_service import FakeService, running_service


@pytest.fixture
def service() -> Iterator[FakeService]:
    with running_service() as running:
        yield running


def command(service: FakeService, folder: Path, *more: str, prompt: str = "tokens=3") -> int:
    prompts = folder / "prompts.jsonl"
    prompts.write_text(json.dumps({"prompt": prompt}) + "\n")
    given = ["--prompts", str(prompts), "--output", str(folder / "out"), "--num-requests", "6"]
    with pytest.raises(SystemExit) as left:
        main(["loadtest", service.url, *given, *more])
    return int(left.value.code or 0)


def test_flags_reach_the_test(
    service: FakeService, tmp_path: Path, ray_cluster: str, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = tmp_path / "trace.jsonl"
    trace.write_text("".join(json.dumps({"seconds": s}) + "\n" for s in (0, 0.4, 0.8)))
    flags = {
        "--trace": str(trace),
        "--trace-speed": "2",
        "--max-points": "3",
        "--search-seconds": "2",
        "--timeout": "20",
        "--max-client-lag-ms": "900",
        "--max-error-rate": "0.5",
        "--max-empty-rate": "0.4",
        "--host": "127.0.0.1",
        "--warmup": "1",
        "--clients": "1",
        "--seed": "7",
        "--ttft-slo-ms": "800",
        "--max-model-len": "64",
        "--engine-arg": "enforce_eager=true",
    }
    code = command(service, tmp_path, *(word for pair in flags.items() for word in pair), "--json")
    summary = json.loads(capsys.readouterr().out)
    assert code == 0
    assert summary["points"][0]["offered_rate"] == pytest.approx(5.0)
    expected = {
        **{"trace_speed": 2, "max_points": 3, "request_timeout_seconds": 20, "seed": 7},
        **{"search_seconds": 2, "max_empty_rate": 0.4},
        **{"max_client_lag_ms": 900, "max_error_rate": 0.5, "host": "127.0.0.1"},
        **{"num_warmup": 1, "num_clients": 1, "ttft_slo_ms": 800},
    }
    assert {name: summary["options"][name] for name in expected} == expected
    engine = summary["options"]["engine_options"]
    assert (engine["max_model_len"], engine["engine_args"]) == (64, {"enforce_eager": True})


def test_the_table_and_failures_on_the_terminal(
    service: FakeService, tmp_path: Path, ray_cluster: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(service, tmp_path, "--concurrency", "2") == 0
    shown = capsys.readouterr()
    text = shown.out + shown.err
    assert all(word in text for word in ("in flight", "req/s", "tok/s", "TTFT", "E2E", "p99"))
    assert command(service, tmp_path, "--concurrency", "2", prompt="http_500") == 1
    shown = capsys.readouterr()
    assert "6 of 6 requests failed" in shown.err and "http_500 6" in shown.err
    assert "hint: the first http_500: " in shown.err


def test_labels_and_alphas_that_do_not_fit(
    service: FakeService, tmp_path: Path, ray_cluster: str, capsys: pytest.CaptureFixture[str]
) -> None:
    load = ("--concurrency", "1")
    assert command(service, tmp_path, *load, "--client-label", "role") == 2
    assert "key=value" in capsys.readouterr().err
    assert command(service, tmp_path, *load, "--client-label", "role=load") == 2
    assert "{'role': 'load'}" in capsys.readouterr().err
    assert command(service, tmp_path, *load, "--alpha-rules", "rules.yaml") == 2
    assert "already has its weights" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
