from __future__ import annotations

import json
from pathlib import Path

import pytest

from expo_ray.errors import ConfigError
from expo_ray.loadtests import Contender, LoadtestOptions, compare_targets, loadtest_scaling
from tests.loadtests.fake_service import running_service
from tests.loadtests.test_run import write_prompts


def test_two_services_take_turns_on_the_same_requests(tmp_path: Path, ray_cluster: str) -> None:
    with running_service() as before, running_service() as after:
        before.models = [{"id": "fake", "weights_digest": "one"}]
        after.models = [{"id": "fake", "weights_digest": "two"}]
        after.extra_tokens = 3  # what was 3 tokens becomes 6, at the same time per token
        result = compare_targets(
            Contender(target=before.url),
            Contender(target=after.url, alpha=None),
            prompts=write_prompts(tmp_path, *["tokens=3 wait=0.02"] * 4),
            output=tmp_path / "out",
            concurrency=[2],
            rounds=2,
            num_requests=8,
            options=LoadtestOptions(num_warmup=0, num_clients=1, unique_prompts=True),
            address=ray_cluster,
        )
        asked = [
            [b["messages"][0]["content"] for b in service.requests] for service in (before, after)
        ]
    assert sorted(asked[0]) == sorted(asked[1])
    assert len(set(asked[0])) == 16  # other letters in every round
    assert result == json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert result["baseline"]["weights_digest"] == "one"
    assert result["candidate"]["weights_digest"] == "two"
    [point] = result["points"]
    assert (point["concurrency"], point["num_pairs"], point["num_unpaired"]) == (2, 16, 0)
    assert point["tokens_per_request"]["ratio"] == 2.0
    assert point["tokens_per_request"]["changed"] is True
    slower = point["seconds_per_request"]["ratio"]
    assert point["requests_per_second"]["ratio"] == pytest.approx(1 / slower)
    assert (tmp_path / "out" / "candidate" / "round-1" / "requests.parquet").exists()


def test_later_rounds_say_that_their_prompts_were_sent_before(
    tmp_path: Path, ray_cluster: str
) -> None:
    with running_service() as before, running_service() as after:
        compare_targets(
            Contender(target=before.url),
            Contender(target=after.url),
            prompts=write_prompts(tmp_path, *[f"tokens=2 number={i}" for i in range(4)]),
            output=tmp_path / "out",
            concurrency=[2],
            rounds=2,
            together=False,  # yet running services go on
            num_requests=4,
            options=LoadtestOptions(num_warmup=0, num_clients=1),
            address=ray_cluster,
        )
    for side in ("baseline", "candidate"):
        states = [
            json.loads((tmp_path / "out" / side / f"round-{i}" / "summary.json").read_text())
            for i in range(2)
        ]
        assert [state["prefix_cache"] for state in states] == ["once", "reused"]


@pytest.mark.slow
def test_replicas_share_and_are_reached_with_and_without_the_proxy(
    pico_pair: tuple[Path, Path], tmp_path: Path, ray_cluster: str
) -> None:
    with pytest.raises(ConfigError, match="ascending"):
        loadtest_scaling("m", prompts="p", output=tmp_path, replicas=[2, 1])
    initial, aligned = pico_pair
    result = loadtest_scaling(
        str(aligned),
        prompts=write_prompts(tmp_path, *[f"Hello {i}." for i in range(8)]),
        output=tmp_path / "out",
        replicas=[2],
        concurrency=2,
        initial=str(initial),
        alpha=0.5,
        alpha_rules=[{"match": "*norm*", "alpha": 0}],
        rounds=2,
        num_requests=8,
        max_tokens=8,
        options=LoadtestOptions(num_warmup=0, num_clients=1, max_client_lag_ms=1000.0),
        address=ray_cluster,
    )
    [point] = result["points"]
    assert point["num_replicas"] == 2
    assert point["efficiency"] == 1.0
    assert sum(point["requests_by_replica"].values()) <= 2 * 16
    assert 1 <= len(point["requests_by_replica"]) <= 2
    assert point["busiest_over_mean"] >= 1
    assert point["proxy"]["throughput_ratio"] > 0
    assert (result["rounds"], result["alpha"]) == (2, None)
    assert "*norm*" in json.dumps(result["alpha_rules"])
    started = []
    for way, turn in (("proxy", 0), ("direct", 0), ("direct", 1), ("proxy", 1)):
        folder = tmp_path / "out" / f"replicas-2-{way}" / f"round-{turn}"
        summary = json.loads((folder / "summary.json").read_text())
        assert summary["direct"] is (way == "direct")
        # Whichever comes later must not find its prompts in a cache.
        assert summary["prefix_cache"] == "unique"
        assert summary["model"].startswith("aligned@rules=")
        assert [who["model"] for who in summary["points"][0]["answered_by"]] == [summary["model"]]
        started.append(summary["points"][0]["started_at"])
        [load] = summary["points"]
        assert load["num_requests"] == 16
        assert set(load["errors"]) <= {"empty"}
        assert load["total_output_tokens"] > 0
    assert started == sorted(started)
